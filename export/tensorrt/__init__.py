"""TensorRT plans from ONNX networks, with either flavour of TensorRT, with or without a GPU.

==================  =============================================================================
file                what it holds
==================  =============================================================================
``targets``         which GPUs plans are built for, what each can compute in, which flavours serve it
``flavours``        choosing and loading a flavour: TensorRT, or TensorRT for RTX
``profiles``        optimisation profiles from resolutions, batch and text tokens
``estimate``        what a plan takes, before it is built
``plans``           all networks of a bundle, and the manifest of its plans; resumable
``build``           one network: ONNX in, plan out, in a process of its own
``worker``          that process
``addresses``       its memory addresses: the same each time, for plans that are the same each time
``job``             what it does
``progress``        the builder's phases as one fraction
``plan_file``       the plan, streamed to disk and hashed as it comes
``report``          what the plan is made of: precisions, share of FP8, attention
==================  =============================================================================
"""
