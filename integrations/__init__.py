"""ArcFlow inside other people's servers: Ray Serve and Triton. Each folder needs its server, and nothing else does."""
