"""`python scripts/precision_study.py` runs studies/precision.py."""

from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.studies.precision import study

if __name__ == "__main__":
    run_command(study)
