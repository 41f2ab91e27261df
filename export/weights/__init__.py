"""Weights on disk: reading, merging adapter and LoRAs, writing as external data."""
