"""Annotations, data sets and the sprite world."""
