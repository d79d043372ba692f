"""Locate-then-edit methods: target vector search, then closed-form MLP weight updates."""
