"""Times: which contender answers a case how fast, as a ratio within one run."""
