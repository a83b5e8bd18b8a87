"""`python scripts/fit_uncertainty.py` runs studies/fitted_uncertainty.py."""

from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.studies.fitted_uncertainty import fit_uncertainty

if __name__ == "__main__":
    run_command(fit_uncertainty)
