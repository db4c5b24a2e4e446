"""Closed forms about a model and a run, in pure Python: parameters and FLOPs. Never imports torch."""
