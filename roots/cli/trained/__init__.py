"""Commands on a trained model: what it writes, how good it is, what is in it."""
