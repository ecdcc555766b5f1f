"""Models with continuous latent variables."""
