"""ArcFlow inside other people's programs: Ray Serve, Triton, ComfyUI. Each folder needs its own, and nothing else does."""
