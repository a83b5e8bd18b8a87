"""The staged job that proves and times every engine on an NVIDIA GPU."""
