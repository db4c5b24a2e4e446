"""Export for llama.cpp and its world."""
