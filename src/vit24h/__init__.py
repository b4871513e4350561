"""Train a Vision Transformer from scratch on ImageNet-1k within 24 hours on one GPU."""

__version__ = "0.1.0"
