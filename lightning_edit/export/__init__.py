"""Export of edits: as a PEFT adapter (LoRA), a merged checkpoint, or a single delta file."""
