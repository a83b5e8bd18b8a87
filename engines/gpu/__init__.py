"""Sessions on an NVIDIA GPU, whichever engine runs: memory, streams, CUDA graphs, and the driver's libraries."""
