"""Decoder models: read like single-device code, parallel through the layers of roots.parallel."""
