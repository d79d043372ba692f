"""Editors with a trained hypernetwork, such as MEND."""
