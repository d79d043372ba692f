"""Evaluation of a model: probe scoring, pristine baseline, perplexity texts, facts around edits."""
