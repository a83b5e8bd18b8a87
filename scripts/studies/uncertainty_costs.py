"""What uncertainties cost: of the last layer beside the same engine without, of a committee beside its first member.

    python -m painn_deploy.scripts.studies.uncertainty_costs student:base
    python -m painn_deploy.scripts.studies.uncertainty_costs a.safetensors b.safetensors c.safetensors

Times are medians of `calculate_batch` as a whole, neighbours included, as ratios to the first engine, on one thread.
"""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer
from ase import Atoms
from ase.build import molecule

from painn_deploy.calibration.structures import trusted_species
from painn_deploy.calibration.timing import medians, mover
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.graph.translate import IR_VERSION, OPSET
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.machine import processor
from painn_deploy.runtime.uncertainty.watch import without_uncertainty
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.export import export_engines
from painn_deploy.scripts.commands.outputs import markdown

__all__ = ["uncertainty_costs"]

DEPTH, ROWS = 20, (9, 72, 576, 4608)
"""Products after one another, and rows of their features: of an atom and of its slots, alone and in a batch."""

BATCHES = (1, 64)
"""Molecules of nine atoms that are evaluated together."""

ATOMS, SPACING = 9, 1.4
"""Of each molecule; and Å between its atoms."""


def molecules(species: tuple[int, ...], count: int) -> list[Atoms]:
    """Ethanols, or zigzag chains of a student's elements; moved a little, so that no two are the same.

    Args:
        species: atomic numbers.
        count: how many.
    """
    rng, chain = np.random.default_rng(0), np.arange(ATOMS)
    ethanol = molecule("CH3CH2OH")
    if set(ethanol.numbers) <= set(species):
        return [Atoms(ethanol.numbers, ethanol.positions + rng.normal(0, 0.05, (ATOMS, 3))) for _ in range(count)]
    places = np.stack([SPACING * chain * 0.8, SPACING * 0.6 * (chain % 2), 0 * chain], -1)
    numbers = [species[i % len(species)] for i in range(ATOMS)]
    return [Atoms(numbers, places + rng.normal(0, 0.05, places.shape)) for _ in range(count)]


def uncertainty_costs(
    checkpoints: Annotated[list[str], typer.Argument(help="One with an uncertainty, or several for a committee.")],
    engine: Annotated[str, typer.Option(help="onnxruntime or inductor.")] = "onnxruntime",
) -> None:
    """Print what an uncertainty costs beside the same engine without, or a committee beside its first member."""
    species = tuple(trusted_species(load_student(checkpoints[0])))
    info, rows = "", []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        opened = [
            stack.enter_context(PaiNNCalculator(path, threads=1))
            for path in _exported(checkpoints, engine, Path(folder))
        ]
        if len(checkpoints) == 1 and opened[-1].evaluator.uncertainty is None:
            raise without_uncertainty(checkpoints[0], "its cost")
        info = " ".join(str(opened[0].engine_info[key]) for key in ("backend", "version", "device"))
        for count in BATCHES:
            fresh = mover(molecules(species, count), np.random.default_rng(0))
            calls = {str(place): each.calculate_batch for place, each in enumerate(opened)}
            times = list(medians(calls, fresh).values())
            ratios = [times[-1] / times[0]]
            if len(checkpoints) > 1:
                ratios.append(sum(times[:-1]) / times[0])
            rows.append((str(count), *(f"{ratio:.3f}" for ratio in ratios)))
    several = (f"one graph of {len(checkpoints)}", "one after the other")
    print(f"{info}, one thread, {processor()}")
    print(markdown(("molecules", *(several if len(checkpoints) > 1 else ("with its uncertainty",))), rows))
    if len(checkpoints) > 1:
        width = load_student(checkpoints[0]).configuration.hidden_dim
        print(f"{DEPTH} products of width {width} with an activation each in ONNX Runtime, as ratios to one member's")
        headings = ("rows", f"{len(checkpoints)} side by side", f"{len(checkpoints)} stacked in one")
        print(markdown(headings, stacked_products(len(checkpoints), width)))


def stacked_products(members: int, width: int) -> list[tuple[str, ...]]:
    """What it would gain to stack the members' weights, so that each product is one of three dimensions.

    Args:
        members: of the committee.
        width: of their features.

    Returns:
        Rows of the features; times of as many products side by side, and of stacked ones, as ratios to one member's.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    kinds = {"one": (1, False), "apart": (members, False), "stacked": (members, True)}
    sessions = {
        name: onnxruntime.InferenceSession(_products(*kind, width), options, providers=["CPUExecutionProvider"])
        for name, kind in kinds.items()
    }
    rng, rows = np.random.default_rng(0), []
    calls = {name: partial(session.run, None) for name, session in sessions.items()}
    for count in ROWS:
        features = rng.normal(size=(count, width)).astype(np.float32)
        times = medians(calls, lambda features=features: {"x": features}, calls=50)  # type: ignore[misc]
        rows.append((str(count), *(f"{times[name] / times['one']:.2f}" for name in ("apart", "stacked"))))
    return rows


def _products(members: int, stacked: bool, width: int) -> bytes:
    """A graph of `DEPTH` products and activations for each member, or of stacked ones."""
    rng, nodes, weights = np.random.default_rng(0), [], []
    ends = ["x"] * (1 if stacked else members)
    for depth in range(DEPTH):
        for place, end in enumerate(ends):
            shape = (members, width, width) if stacked else (width, width)
            name = f"{depth}.{place}"
            weight = rng.normal(size=shape).astype(np.float32) / np.sqrt(width).astype(np.float32)
            weights.append(onnx.numpy_helper.from_array(weight, f"w{name}"))
            nodes.append(onnx.helper.make_node("MatMul", [end, f"w{name}"], [f"m{name}"]))
            nodes.append(onnx.helper.make_node("Sigmoid", [f"m{name}"], [f"s{name}"]))
            nodes.append(onnx.helper.make_node("Mul", [f"m{name}", f"s{name}"], [f"y{name}"]))
            ends[place] = f"y{name}"
    given, *made = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", *ends))
    graph = onnx.helper.make_graph(nodes, "products", [given], made, weights)
    opset = onnx.helper.make_opsetid("", OPSET)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    return bytes(model.SerializeToString())


def _exported(checkpoints: Sequence[str], engine: str, folder: Path) -> list[Path]:
    """Each student alone and without an uncertainty, and what has one."""
    alone = [
        path
        for place, one in enumerate(checkpoints)
        for path in export_engines(one, folder / str(place), engines=[engine], uncertainty=False)
    ]
    given: str | list[str] = list(checkpoints) if len(checkpoints) > 1 else checkpoints[0]
    return alone + export_engines(given, folder / "whole", committee=len(checkpoints) > 1, engines=[engine])


if __name__ == "__main__":
    run_command(uncertainty_costs)
