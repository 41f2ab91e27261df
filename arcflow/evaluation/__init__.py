"""Evaluation: samplers compared, the figures, and images of them."""
