"""Pictures on an NVIDIA GPU: TensorRT plans and the native core's kernels on one stream, without torch."""
