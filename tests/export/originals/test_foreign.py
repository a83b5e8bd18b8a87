"""Files of codes that are not read are named for what they are, and nothing of them is executed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from painn_deploy.export import load_student
from painn_deploy.export.errors import CheckpointError
from painn_deploy.export.readers.foreign import PACKAGES
from tests.export.schnetpack.edits import KCAL, with_pickle

OPEN_CATALYST = "module.module.message_layers.0.x_proj.0.weight"
WEIGHTS = {
    "direct forces": (
        (OPEN_CATALYST, "module.module.out_forces.output_network.0.vec1_proj.weight"),
        "of the Open Catalyst Project .* predicts forces directly, from vectors and not as the gradient of its energy",
    ),
    "forces as a gradient": ((OPEN_CATALYST,), r"nablaDFT's PaiNN-OC\), which sees no more than its nearest neighb"),
    "modelforge": (("potential.core_network.message_function.0.interatomic_net.0.weight",), "a model of modelforge"),
    "TorchMD-NET": (
        ("model.representation_model.embedding.weight", "model.output_model.layers.0.weight"),
        "equivariant transformer weights PaiNN's messages by attention",
    ),
    "XequiNet": (("message_layers.0.rbf_lin.weight", "update_layers.0.dot_lin.weight"), "whose XPaiNN has spherical"),
    "MACE": (("products.0.symmetric_contractions.contractions.0.weights_max",), "a model of MACE, which is no PaiNN"),
}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_pickled_model_is_named_by_its_package(package: str, tmp_path: Path) -> None:
    path = with_pickle(f"\x80\x02c{package}.models\nModel\n)\x81}}b.".encode("latin1"), tmp_path / "best.model")
    with pytest.raises(CheckpointError, match=rf"names {package}\.models\.Model: it holds .*Nothing was executed"):
        load_student(path, declared=KCAL)


def test_a_compiled_model_is_to_be_saved_as_it_was(tmp_path: Path) -> None:
    pickled = b"\x80\x02ctorch._dynamo.eval_frame\nOptimizedModule\n)\x81}b."
    with pytest.raises(CheckpointError, match=r"torch\.compile wrapped .*torch\.save\(model\._orig_mod, 'model\.pt'\)"):
        load_student(with_pickle(pickled, tmp_path / "model.pt"), declared=KCAL)


@pytest.mark.parametrize("name", ["x" * 100_000, "\x1b[2J"])
def test_a_name_that_is_none_is_not_shown_whole(name: str, tmp_path: Path) -> None:
    path = with_pickle(f"\x80\x02c{name}\n{name}\n)\x81}}b.".encode("latin1"), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"names [ -~]{1,100}, which no PaiNN .* is made of") as raised:
        load_student(path, declared=KCAL)
    assert len(str(raised.value)) < 1_000
    assert str(raised.value).isprintable()


def test_what_is_wrong_with_a_pickle_is_not_shown_whole(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="its pickle is corrupt or cut short") as raised:
        load_student(with_pickle(b"\x80\x02F" + b"x" * 100_000 + b"\n.", tmp_path / "model.pt"), declared=KCAL)
    assert len(str(raised.value)) < 1_000


@pytest.mark.parametrize("what", WEIGHTS)
@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("suffix", ["pt", "ckpt"])
def test_a_state_dict_is_named_by_its_tensors(what: str, key: str | None, suffix: str, tmp_path: Path) -> None:
    names, message = WEIGHTS[what]
    state: dict[str, Any] = {name: torch.ones(2, 2) for name in names}
    path = tmp_path / f"best.{suffix}"
    torch.save(state if key is None else {"epoch": 3, "config": {"model": "painn"}, key: state}, path)
    with pytest.raises(CheckpointError, match=rf"holds .*{message}.*It cannot be deployed"):
        load_student(path, declared=KCAL)
