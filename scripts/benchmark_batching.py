"""`python scripts/benchmark_batching.py` runs benchmarks/batching.py."""

from painn_deploy.scripts.benchmarks.batching import main
from painn_deploy.scripts.commands.entry import run_command

if __name__ == "__main__":
    run_command(main)
