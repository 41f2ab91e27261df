"""Measuring: ``python -m runtime.bench``, where the time of an image goes."""
