"""Where the time goes: operators, arithmetic and memory traffic of a graph."""
