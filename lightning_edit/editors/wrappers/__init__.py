"""Editors around another editor: they shape, scale or regularise its update."""
