"""Attention: projections, positions, which keys a query sees, and the cache."""
