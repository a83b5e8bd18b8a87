"""Models that SchNetPack saved, read without SchNetPack and without trust: nothing in them is ever executed."""
