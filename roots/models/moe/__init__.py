"""Mixtures of experts: the layer, its routing, and the way of tokens to experts."""
