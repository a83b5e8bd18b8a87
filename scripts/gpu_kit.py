"""`python scripts/gpu_kit.py` runs kit/kit.py."""

from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.kit.kit import gpu_kit

if __name__ == "__main__":
    run_command(gpu_kit)
