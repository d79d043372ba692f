"""The command line: one module a verb, and the parsers they share."""
