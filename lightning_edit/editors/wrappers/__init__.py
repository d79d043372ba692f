"""Wrapper editors around a host editor: they shape, scale or regularise its update."""
