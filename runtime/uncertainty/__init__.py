"""How sure a bundle is of its own predictions."""
