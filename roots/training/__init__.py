"""The training loop and what surrounds it. Import the modules; this file imports nothing."""
