"""Files of text to datasets of tokens: reading, tokenizing in parallel, writing."""
