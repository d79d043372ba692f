"""Language models for editors: loading, module lookup by structure, access to weights.

Nothing is imported here, so that ``lightning-edit doctor --help`` starts without loading torch.
"""
