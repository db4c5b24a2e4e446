"""What a model prefers among sentences that differ in whom they are about."""
