"""Memory editors: codebooks and side memories that act when a prompt falls into their scope."""
