"""ONNX Runtime, on a CPU or through CUDA."""

from painn_deploy.export.moved import names_of

__getattr__ = names_of(__name__, f"{__name__}.backend")
