"""Products of 8-bit integers in ONNX Runtime on a CPU: exact, or none.

It makes the operand of a product uint8 and leaves the weight int8, for which a processor without VNNI has an
instruction that saturates. It has an option for slower and exact products of uint8 with uint8 (`EXACT`), which is
chosen where the proof fails without it; where there is VNNI, it would only be slower.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Int8

from painn_deploy.engines.eight_bits import COLUMNS, CONTRACTED, LARGEST, REMEDY, is_exact
from painn_deploy.engines.onnxruntime.library import library
from painn_deploy.export.errors import EngineUnavailableError

__all__ = ["EXACT", "PRODUCT", "QUANTISED", "settings_for_int8"]

QUANTISED = b"QuantizeLinear"
"""An operator: a graph that holds it has products in INT8."""

EXACT = "session.x64quantprecision"

PRODUCT = bytes.fromhex(
    "08083af0010a2f0a016e120177220f436f6e7374616e744f6653686170652a160a0576616c75652a0a080110032a017f420176a001040a1c0a"
    "01780a01730a017a120161220e5175616e74697a654c696e6561720a1e0a01610a01730a017a120162221044657175616e74697a654c696e65"
    "61720a1e0a01770a01730a017a120163221044657175616e74697a654c696e6561720a110a01620a016312017922064d61744d756c12002a0b"
    "100122040000803f4201732a0810032a010042017a2a0c080210073a03a0026042016e5a120a0178120d0a0b080112070a000a0308a0026211"
    "0a0179120c0a0a080112060a000a02086042040a001011"
)
"""A graph: x to int8 and back, and its product with an int8 weight that is 127 everywhere. It is written down since
opening a bundle does not need the package onnx."""


@cache
def settings_for_int8() -> Mapping[str, str]:
    """Settings of a session on the CPU with which products of 8-bit integers are exact here.

    Raises:
        EngineUnavailableError: there are none.
    """
    weight = np.full((CONTRACTED, COLUMNS), LARGEST, np.int8)
    choices: tuple[dict[str, str], ...] = ({}, {EXACT: "1"})
    for settings in choices:
        session = _session(settings)

        def multiply(x: Int8[np.ndarray, "rows contracted"], session: Any = session) -> np.ndarray:
            product: np.ndarray = session.run(None, {"x": x.astype(np.float32)})[0]
            return product

        if is_exact(multiply, weight):
            return settings
    raise EngineUnavailableError(f"ONNX Runtime's products of 8-bit integers are wrong on this processor. {REMEDY}")


def _session(settings: Mapping[str, str]) -> Any:
    options = library().SessionOptions()
    options.intra_op_num_threads = 1
    for name, value in settings.items():
        options.add_session_config_entry(name, value)
    return library().InferenceSession(PRODUCT, options, providers=["CPUExecutionProvider"])
