"""`python scripts/train_student.py` runs distillation/train.py."""

from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.distillation.train import train

if __name__ == "__main__":
    run_command(train)
