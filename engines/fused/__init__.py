"""Molecules evaluated whole by one kernel: every block of threads takes some, from positions to forces.

No engine is made of it yet: it is proved on a CPU, and what it gives on a GPU has not been looked at.
"""
