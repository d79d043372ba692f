"""Causal tracing: find the hidden states of a model that carry a fact.

Meng, Bau, Andonian, Belinkov: *Locating and Editing Factual Associations in GPT*, NeurIPS 2022,
arXiv 2202.05262, section 2. :mod:`~lightning_edit.cli.trace` is the verb ``trace``.
"""
