"""`python scripts/benchmark_force_optimizations.py` runs benchmarks/force_optimizations.py."""

from painn_deploy.scripts.benchmarks.force_optimizations import main
from painn_deploy.scripts.commands.entry import run_command

if __name__ == "__main__":
    run_command(main)
