"""Operators of generation on a CPU, whose time is that of reading weights and caches."""
