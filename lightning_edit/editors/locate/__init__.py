"""Locate-then-edit methods: a target vector is searched, then a layer's weights are solved."""
