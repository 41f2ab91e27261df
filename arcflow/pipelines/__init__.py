"""Students in diffusers' own pipelines: scheduler, transformer with its head, loading, noise."""
