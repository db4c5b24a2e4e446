"""Looking inside a trained model: what every layer predicts, where heads look, what overflows."""
