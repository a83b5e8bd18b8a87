"""One structure on several MPI ranks."""
