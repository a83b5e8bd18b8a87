"""`python scripts/gpu_check.py` runs gpu/check.py."""

from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.gpu.check import gpu_check

if __name__ == "__main__":
    run_command(gpu_check)
