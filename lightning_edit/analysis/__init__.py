"""Studies of models and editors: causal tracing, layer sweeps, trade-offs."""
