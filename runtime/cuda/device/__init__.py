"""One GPU with one stream through NVIDIA's driver, and the native core's kernels compiled for it."""
