"""Studies whose figures go into the documentation."""
