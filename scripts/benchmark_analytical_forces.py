"""`python scripts/benchmark_analytical_forces.py` runs benchmarks/analytical_forces.py."""

from painn_deploy.scripts.benchmarks.analytical_forces import main
from painn_deploy.scripts.commands.entry import run_command

if __name__ == "__main__":
    run_command(main)
