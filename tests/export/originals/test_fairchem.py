"""Open Catalyst's PaiNN is known whatever it is wrapped in, and refused with the reason."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from painn_deploy.export import load_student
from painn_deploy.export.declaration import Declaration
from painn_deploy.export.errors import CheckpointError

EV = Declaration("eV", "Ang")
REASONS = {
    True: r"of the Open Catalyst Project .*PaiNN-OC\) that predicts forces directly, .*: they conserve none",
    False: r"nearest neighbours \(max_neighbors\), and does not fade the bias .*: its energy jumps",
}


class PaiNN(nn.Module):
    """The parts of the original, by its names for them; it computes nothing."""

    def __init__(self, direct: bool, features: int = 4, functions: int = 3) -> None:
        super().__init__()

        def network(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(inputs, features), nn.SiLU(), nn.Linear(features, outputs))

        self.atom_emb = nn.ModuleDict({"embeddings": nn.Embedding(83, features)})
        message = {"x_proj": network(features, 3 * features), "rbf_proj": nn.Linear(functions, 3 * features)}
        update = {"vec_proj": nn.Linear(features, 2 * features, bias=False), "xvec_proj": network(8, 12)}
        self.message_layers = nn.ModuleList([nn.ModuleDict(message)])
        self.update_layers = nn.ModuleList([nn.ModuleDict(update)])
        self.out_energy = network(features, 1)
        if direct:
            block = nn.ModuleDict({"vec1_proj": nn.Linear(features, features, bias=False)})
            self.out_forces = nn.ModuleDict({"output_network": nn.ModuleList([block])})


def wrapped(model: PaiNN, how: str) -> Any:
    state = model.state_dict()
    match how:
        case "fairchem":
            named = {f"module.module.{name}": tensor for name, tensor in state.items()}
            return {"epoch": 3.0, "state_dict": named, "config": {"model": "painn"}, "ema": {"decay": 0.999}}
        case "lightning":
            named = {f"model.{name}": tensor for name, tensor in state.items()}
            return {"pytorch-lightning_version": "2.1.4", "state_dict": named, "hyper_parameters": {"model": model}}
        case "state dict":
            return dict(state)
    return model


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("how", ["fairchem", "lightning", "state dict", "module"])
def test_it_is_refused_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool, how: str) -> None:
    place = "nablaDFT.painn_pyg.painn"
    (module := ModuleType(place)).PaiNN = PaiNN  # type: ignore[attr-defined]
    for name in ("nablaDFT", "nablaDFT.painn_pyg"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, place, module)
    monkeypatch.setattr(PaiNN, "__module__", place)
    path = tmp_path / ("x.ckpt" if how == "lightning" else "x.pt")
    torch.save(wrapped(PaiNN(direct), how), path)
    with pytest.raises(CheckpointError, match=REASONS[direct]):
        load_student(path, declared=EV)
