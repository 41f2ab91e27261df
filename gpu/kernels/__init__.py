"""The runtime's kernels on a GPU: fields to feed them, whether they are right, how fast they are."""
