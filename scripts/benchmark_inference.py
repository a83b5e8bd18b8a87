"""`python scripts/benchmark_inference.py` runs benchmarks/inference.py."""

from painn_deploy.scripts.benchmarks.inference import benchmark
from painn_deploy.scripts.commands.entry import run_command

if __name__ == "__main__":
    run_command(benchmark)
