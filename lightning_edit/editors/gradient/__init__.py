"""Editors by fine-tuning, of weights or of adapters, and by gradients in closed form."""
