"""ROOTS: pretraining of large language models with tensor, pipeline and data parallelism on DeepSpeed."""

__version__ = "0.1.0"
