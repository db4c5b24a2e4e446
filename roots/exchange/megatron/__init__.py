"""Models of Megatron-core."""
