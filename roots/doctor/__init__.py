"""`roots doctor`: measures machines, and names those that are out of line with their peers."""
