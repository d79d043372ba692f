"""Editors that route a prompt to another model, such as SERAC."""
