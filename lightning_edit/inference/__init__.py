"""How a language model is run: hooks, teacher forcing, generation, packed and partial passes."""
