"""`python scripts/validate_model_detailed.py` runs studies/detailed_validation.py."""

from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.studies.detailed_validation import main

if __name__ == "__main__":
    run_command(main)
