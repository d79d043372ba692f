"""Work divided among processes: shares, gathering, sharded weights."""
