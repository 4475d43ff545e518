"""Jukebox in JAX: a VQ-VAE and autoregressive priors that make music as raw audio.

Importing the package imports no jax; take what you need from its parts, for example::

    from jukebox_jax import presets
    from jukebox_jax.models.vqvae import VQVAE

ARCHITECTURE.md says which part is where.
"""

__version__ = "0.1.0"
