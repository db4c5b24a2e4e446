"""What is learned from tokens: from samples to batches, a file for each objective."""
