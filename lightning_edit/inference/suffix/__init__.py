"""Suffix forward passes: run again only the blocks and positions that an edit changes."""
