"""Closed forms about a model and a run, in pure Python, never torch: parameters and FLOPs."""
