"""Layer sweeps and trade-offs: edit the same facts at every layer, or at every edit strength α.

:mod:`~lightning_edit.cli.sweep` is the verb ``sweep``, :mod:`~lightning_edit.cli.tradeoff` the verb
``tradeoff``.
"""
