"""Layers: what is done to the layers of any model."""
