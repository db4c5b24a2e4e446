"""Tokens on disk to batches: datasets, indices, blending, sampling, loading.

`preprocess`, `readers` and `indexed` work without torch, so that worker processes start fast.
"""
