"""Parallel layers: topology, groups as values, collectives, sharded linear, embedding and loss."""
