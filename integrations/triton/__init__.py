"""ArcFlow in Triton Inference Server: ``python -m integrations.triton BUNDLE --out DIR`` makes a model repository."""
