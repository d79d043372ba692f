"""Results of a run: their schema, and what is made of them."""
