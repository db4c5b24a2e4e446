"""What became of a run, read from its folder: accounts, forecasts, pictures and a page."""
