"""Neighbours, packing and the ASE calculator. Needs neither torch nor a GPU library."""

from painn_deploy.runtime.calculator import PaiNNCalculator

__all__ = ["PaiNNCalculator"]
