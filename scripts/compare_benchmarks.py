"""`python scripts/compare_benchmarks.py` runs benchmarks/compare.py."""

from painn_deploy.scripts.benchmarks.compare import compare
from painn_deploy.scripts.commands.entry import run_command

if __name__ == "__main__":
    run_command(compare)
