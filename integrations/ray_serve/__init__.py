"""ArcFlow on Ray Serve: ``serve run integrations.ray_serve.app:build model=tiny gpus=0``."""
