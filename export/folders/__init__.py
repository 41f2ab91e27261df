"""Folders that builds work in: locks, keys of results, digests, what fits."""
