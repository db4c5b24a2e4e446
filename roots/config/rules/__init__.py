"""Rules that span fields, a file for each subject; table.py puts them together."""
