"""Deltas (weight updates), and the ledger that commits and undoes them exactly."""
