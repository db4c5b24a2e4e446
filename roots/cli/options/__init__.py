"""Options of the command line that do not mean what was meant."""
