"""Gradient-based editors: fine-tuning, LoRA adapters, and closed-form gradient updates."""
