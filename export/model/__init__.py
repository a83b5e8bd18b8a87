"""The student: its two architectures, the explicit backward pass, the radial table and the force head."""
