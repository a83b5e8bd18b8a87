"""`python scripts/relabel.py` runs distillation/relabel.py."""

from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.distillation.relabel import command

if __name__ == "__main__":
    run_command(command)
