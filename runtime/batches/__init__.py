"""Many structures at once: checked, searched, packed and answered for in arrays, without an object for each."""
