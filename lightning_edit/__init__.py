"""lightning-edit."""
