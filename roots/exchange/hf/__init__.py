"""Hugging Face folders to and from checkpoints: maps declared as data, tensors streamed."""
