"""Edit loop: stream of edits, session, ``EditTrainer``, and the record of a run."""
