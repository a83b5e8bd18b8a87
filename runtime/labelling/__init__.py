"""Which structures of a screening are most worth a label: for active learning."""

from painn_deploy.runtime.labelling.selection import Selection, select

__all__ = ["Selection", "select"]
