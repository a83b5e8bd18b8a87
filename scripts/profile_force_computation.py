"""`python scripts/profile_force_computation.py` runs studies/force_computation.py."""

from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.studies.force_computation import main

if __name__ == "__main__":
    run_command(main)
