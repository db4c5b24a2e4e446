"""Text to token ids and back: Hugging Face `tokenizers` (train, load), and bytes."""
