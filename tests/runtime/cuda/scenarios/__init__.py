"""What `CudaDevice` does, call by call; see __main__.py."""
