"""`python scripts/benchmark_inference.py` runs benchmarks/benchmark_inference.py."""

from painn_deploy.scripts.benchmarks.benchmark_inference import benchmark
from painn_deploy.scripts.commands.entry import run_command

if __name__ == "__main__":
    run_command(benchmark)
