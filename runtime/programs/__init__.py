"""Other programs' own input files, run with an engine."""
