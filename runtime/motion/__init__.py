"""One structure that moves, on one process or divided among several."""
