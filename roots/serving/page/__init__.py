"""The page at `/`: write with the model, see what each token cost, look inside."""
