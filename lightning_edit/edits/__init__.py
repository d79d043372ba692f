"""An edit as a value (delta), and the ledger that applies and undoes it exactly."""
