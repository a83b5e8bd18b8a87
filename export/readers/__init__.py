"""Readers of files that training codes wrote: safe ones of what a file holds, and one for each code."""
