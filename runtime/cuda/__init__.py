"""Images on an NVIDIA GPU: TensorRT plans and the native core's kernels on one stream, without torch.

==================  =============================================================================
file                what it holds
==================  =============================================================================
``interface``       what the pipeline is made of: a device with one stream, engines, evaluations
``device``          the device over NVIDIA's driver; ``driver``, ``memory``, ``events`` are its parts
``graphs``          work at the same addresses as one CUDA graph a key, and what to do when it is rejected
``kernels``         the native core's kernels compiled for a GPU; ``nvrtc``, ``launch``, ``geometry``
``errors``          one sentence for each thing that goes wrong on a GPU
``opening``         from a bundle of plans to a pipeline
``checks``          whether plans may be loaded here: seal, TensorRT, GPU, driver
``plans``           deserialising plans, once a process
``engine``          contexts of a plan at fixed shapes and addresses
``runtime_cache``   kernels that TensorRT for RTX compiles at run time, kept and sealed
``pipeline``        requests: batches, prompts, results
``encoding``        prompts through the text encoders; ``embeddings`` keeps what they said
``feeding``         what each architecture's backbone is fed
``painting``        one batch: noise, evaluations, the solver, previews, images
``residents``       which networks are on the device, and when they take turns
``buffers``         the buffers of a session; ``extents``, how large; ``arena``, where they lie
``marks``           how long the stages took on the device
==================  =============================================================================
"""
