"""`python scripts/benchmark_batched_forces_druglike.py` runs benchmarks/benchmark_batched_forces_druglike.py."""

from painn_deploy.scripts.benchmarks.benchmark_batched_forces_druglike import main
from painn_deploy.scripts.commands.entry import run_command

if __name__ == "__main__":
    run_command(main)
