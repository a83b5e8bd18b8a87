"""Loops over pairs: in array code, and compiled where numba is installed."""
