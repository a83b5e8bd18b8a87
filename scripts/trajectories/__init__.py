"""Long simulations of molecules at constant energy, with each of several engines."""
