"""Molecules evaluated whole by one kernel: every block of threads takes some, from positions to forces."""
