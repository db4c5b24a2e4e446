"""Text from a trained decoder: loading a checkpoint, sampling, cached decoding."""
