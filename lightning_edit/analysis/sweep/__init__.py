"""Studies that edit the same facts again and again: over layers, and over the length of the step.

:mod:`~lightning_edit.cli.sweep` is the verb ``sweep``, :mod:`~lightning_edit.cli.tradeoff` the verb
``tradeoff``.
"""
