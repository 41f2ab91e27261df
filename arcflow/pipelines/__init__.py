"""Students in diffusers' own pipelines, which stay as they are: scheduler, transformer with its head, loading, noise."""
