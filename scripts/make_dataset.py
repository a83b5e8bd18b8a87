"""`python scripts/make_dataset.py` runs distillation/make_dataset.py."""

from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.distillation.make_dataset import command

if __name__ == "__main__":
    run_command(command)
