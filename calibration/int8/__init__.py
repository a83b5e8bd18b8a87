"""INT8: ranges of activations, and the search for the products whose errors stay within the tolerances."""

from painn_deploy.export.moved import names_of

__getattr__ = names_of(__name__, "painn_deploy.export.graph.int8")
