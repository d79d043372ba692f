"""Editors of single knowledge neurons."""
