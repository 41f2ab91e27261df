"""The embedded default model: its images, captions, tokenizers, VAE, teacher and classifier."""
