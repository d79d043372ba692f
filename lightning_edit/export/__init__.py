"""Ship an edit: as a PEFT adapter, as a full checkpoint, or as one delta file."""
