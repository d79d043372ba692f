"""Storage on disk: atomic writes, JSON Lines, run folders, the schema of ``results.json``."""
