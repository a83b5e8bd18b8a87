"""`python scripts/benchmark_batched_forces_druglike.py` runs benchmarks/druglike.py."""

from painn_deploy.scripts.benchmarks.druglike import main
from painn_deploy.scripts.commands.entry import run_command

if __name__ == "__main__":
    run_command(main)
