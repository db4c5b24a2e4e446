"""What a model keeps of the texts it was trained on: secrets, verbatim text, membership."""
