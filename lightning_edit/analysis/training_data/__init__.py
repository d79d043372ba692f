"""Training data attribution: which fine-tuning texts caused an answer (DDA, TracIn, baselines)."""
