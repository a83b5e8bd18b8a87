"""`python scripts/analyze_model_complexity.py` runs studies/complexity.py."""

from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.studies.complexity import main

if __name__ == "__main__":
    run_command(main)
