"""Images on an NVIDIA GPU: TensorRT plans and the native core's kernels on one stream, without torch.

==============  ====================================================================================
room or file    what it holds
==============  ====================================================================================
``interface``   what the host is made of: a device with one stream, engines, evaluations
``opening``     from a bundle of plans to a host; whether plans may be loaded here
``trials``      plans run once each, alone, to see what they give; ``once``: such a run, and its inputs
``host``        requests: batches, prompts, results
``device/``     the device over NVIDIA's driver, CUDA graphs, and the native core's kernels
``plans/``      plans loaded once a process, their contexts, and what TensorRT for RTX compiles
``memory/``     networks, buffers and cached encodings on the device
``execution/``  prompts through text encoders and conditioner, what the backbone is fed, one batch of images
``errors``      one sentence for each thing that goes wrong on a GPU
==============  ====================================================================================
"""
