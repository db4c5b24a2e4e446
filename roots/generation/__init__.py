"""Text from a trained model: loading a checkpoint, sampling, beam search, cached decoding."""
