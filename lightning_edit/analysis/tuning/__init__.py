"""Hyperparameter search for an editor on a model: layers, strength, bounds and steps.

:mod:`~lightning_edit.cli.tune` is the verb ``tune``.
"""
