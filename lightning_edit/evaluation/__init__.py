"""Scores of a model: outcomes of probes, the pristine baseline, facts around an edit."""
