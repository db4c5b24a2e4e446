"""A trained model over HTTP, for trying, evaluating and comparing it."""
