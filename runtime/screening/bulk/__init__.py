"""Rows of a chunk side by side: read, answered and written as columns, and one by one where they are odd."""
