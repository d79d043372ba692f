"""Training data attribution: which fine-tuning texts caused an answer (DDA, TracIn, baselines)."""

#: Share of the base model's influence that DDA subtracts. The paper's value is not known; this one
#: does best on planted facts (benchmarks/quality/planted_facts.py).
BETA = 0.1
