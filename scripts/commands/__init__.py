"""The commands of `painn-deploy`, a module each; `cli.py` reads their arguments."""
