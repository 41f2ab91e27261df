"""The embedded default model: its pictures, captions, tokenizers, VAE, teacher and classifier."""
