"""Parallel layers: topology, process groups as values, collectives, sharded linear, embedding, loss and pipeline."""
