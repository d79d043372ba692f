"""Files on disk: atomic writes, JSON lines, the folder of a run, the schema of ``results.json``."""
