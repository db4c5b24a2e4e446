"""Models to and from other worlds: Hugging Face, GGUF, Megatron."""
