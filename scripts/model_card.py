"""`python scripts/model_card.py` runs studies/model_card.py."""

from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.studies.model_card import card

if __name__ == "__main__":
    run_command(card)
