"""Pure functions: least-squares solvers, losses, scores, text matching and tokenization."""
