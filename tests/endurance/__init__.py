"""Endurance: what must hold over a million calls, 100,000 rows, 1,000 altered bundles, 10,000 hostile structures.

    python -m tests.endurance --output DIR

measures it and writes the figures of docs/reliability.md; the tests in this folder run a short form of every stage.
"""
