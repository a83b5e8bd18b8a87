"""What computes: PyTorch in several ways, engines of bundles, and other programs, behind one class."""
