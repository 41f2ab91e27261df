"""TensorRT plans on a GPU: loaded once a process, bound to shapes and addresses."""
