"""Padding-free (packed) attention: texts of a batch in one row, without padding."""
