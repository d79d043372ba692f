"""Forward passes: hooks, teacher forcing, KV-cache generation, padding-free and suffix passes."""
