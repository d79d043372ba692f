"""Language models as editors see them: parts by structure, single weights, hooks, loading.

Nothing is imported here, so that ``lightning-edit doctor --help`` answers without loading torch.
"""
