"""`python scripts/validate_analytical_forces.py` runs studies/analytical_forces.py."""

from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.studies.analytical_forces import main

if __name__ == "__main__":
    run_command(main)
