"""TensorRT and TensorRT for RTX, which share nearly one Python API."""

from painn_deploy.export.moved import names_of

__getattr__ = names_of(__name__, f"{__name__}.backend")
