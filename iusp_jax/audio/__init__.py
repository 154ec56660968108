"""Log-mel and augmentation, in JAX."""
