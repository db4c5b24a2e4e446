"""`roots audit`: what a model keeps of its corpus, and what it prefers without a reason."""
