"""Adapters for others: the model card that each has, and the way to the Hugging Face hub."""
