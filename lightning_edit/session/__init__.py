"""The edit loop: stream, session, trainer, and the record of a run."""
