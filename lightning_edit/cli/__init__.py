"""Command-line interface: one module per verb, and the argument parsers that they share."""
