"""TensorRT plans from ONNX networks, with either flavour of TensorRT, with or without a GPU."""
