"""ROOTS: pretraining of large language models in tensor, pipeline and data parallel."""

__version__ = "0.1.0"
