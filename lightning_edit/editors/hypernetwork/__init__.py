"""Hypernetwork editors, trained to predict weight updates, such as MEND."""
