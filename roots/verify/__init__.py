"""The proof of a layout: a small copy, real ranks, and the comparison."""
