"""Graph passes over an :class:`onnx_ir.Model`, one a file; each changes the model in place."""
