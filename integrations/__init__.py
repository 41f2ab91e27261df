"""ArcFlow inside other people's programs: Ray Serve, Triton, ComfyUI. Each folder needs its own, nothing else does."""
