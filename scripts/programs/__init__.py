"""Commands that run other programs with an engine."""
