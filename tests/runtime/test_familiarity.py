"""What is near the structures that a bundle was judged on, and what is far."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule

from painn_deploy.calibration.structures import aspirin, box_of, default_structures
from painn_deploy.export.bundle import Bundle, read_bundle
from painn_deploy.export.errors import BundleError, StructureError
from painn_deploy.export.files import to_json
from painn_deploy.export.manifest import VALIDATION
from painn_deploy.runtime.familiarity import JUDGED_ON, Judged, far_structures

CUTOFF = 5.0
ORGANIC = (1, 6, 7, 8)


def rattled(atoms: Atoms, sigma: float, seed: int = 0) -> Atoms:
    moved = atoms.copy()
    moved.positions += np.random.default_rng(seed).normal(0, sigma, moved.positions.shape)
    return moved


def far_share(judged: Judged, structures: list[Atoms]) -> float:
    return len(far_structures(judged, structures)) / len(structures)


def stretched(atoms: Atoms, moving: list[int], fixed: int, factor: float) -> Atoms:
    """Ethanol with one bond, from `fixed` to the first of the moving atoms, longer or shorter."""
    moved = atoms.copy()
    moved.positions[moving] += (factor - 1) * (moved.positions[moving[0]] - moved.positions[fixed])
    return moved


ETHANOL_BONDS = (([0, 4, 5, 6], 1), ([2, 3], 1), ([3], 2), ([4], 0), ([7], 1))
"""C-C, C-O, O-H and two C-H: what moves, and the atom that stays."""


def thermal(seed: int) -> Atoms:
    """Ethanol whose bonds vibrate by some 0.05 Å."""
    return rattled(molecule("CH3CH2OH"), 0.035, seed)


@pytest.fixture(scope="module")
def ethanol() -> Judged:
    return Judged.of([thermal(seed) for seed in range(200)], CUTOFF)


@pytest.fixture(scope="module")
def organic() -> Judged:
    return Judged.of(default_structures(ORGANIC), CUTOFF)


@pytest.fixture(scope="module")
def copper() -> Judged:
    return Judged.of([rattled(bulk("Cu", cubic=True) * (4, 4, 4), 0.05)], CUTOFF)


def test_other_frames_of_one_molecule_are_near(ethanol: Judged) -> None:
    assert far_share(ethanol, [thermal(seed) for seed in range(1000, 1500)]) == 0
    assert ethanol.far(molecule("CH3CH2OH")) == ""


@pytest.mark.parametrize("factor", [0.8, 1.4, 1.8])
def test_a_bond_that_is_squeezed_or_stretched_is_far(ethanol: Judged, factor: float) -> None:
    for moving, fixed in ETHANOL_BONDS:
        assert ethanol.far(stretched(molecule("CH3CH2OH"), moving, fixed, factor))


def test_other_molecules_of_the_same_elements_are_far(ethanol: Judged) -> None:
    for name in ("CH3OH", "C6H6", "H2O", "CH4", "CH3OCH3", "C2H6", "H2"):
        assert ethanol.far(molecule(name)), name
    assert far_share(ethanol, [rattled(molecule("CH3CH2OH"), 0.3, seed) for seed in range(50)]) == 1


def test_what_is_far_is_named(ethanol: Judged) -> None:
    assert ethanol.far(molecule("NH3")) == "it holds N, which no judged structure does"
    assert ethanol.far(molecule("CH3SH")) == "it holds S, which no judged structure does"
    pair = molecule("CH3CH2OH")
    pair.positions[3] = pair.positions[2] + [0, 0, 0.4]
    words = ethanol.far(pair)
    assert words.startswith("atoms 2 (O) and 3 (H) are 0.40 Å apart, and nothing below 0.")
    broken = stretched(molecule("CH3CH2OH"), [3], 2, 1.8)
    assert ethanol.far(broken).startswith("the surroundings of atom 3 (H) are unlike all judged ones: ")


def test_two_molecules_are_far_until_they_are_out_of_reach(ethanol: Judged) -> None:
    one = molecule("CH3CH2OH")
    for distance, far in ((2.0, True), (CUTOFF + 0.1, False)):
        other = one.copy()
        other.positions[:, 2] += np.ptp(one.positions[:, 2]) + distance
        assert bool(ethanol.far(one + other)) == far


def test_a_set_of_one_structure(copper: Judged) -> None:
    one = Judged.of([molecule("CH3CH2OH")], CUTOFF)
    assert far_share(one, [thermal(seed) for seed in range(500)]) < 0.02
    assert one.far(molecule("CH3OH"))
    assert one.far(stretched(molecule("CH3CH2OH"), [3], 2, 1.8))
    assert Judged.of([Atoms("He")], CUTOFF).far(Atoms("He")) == ""
    crystal = bulk("Cu", cubic=True)
    for near in (crystal, bulk("Cu"), rattled(crystal * (6, 6, 6), 0.05, 3)):
        assert copper.far(near) == ""


def test_a_crystal_that_expands_melts_or_ends_is_far(copper: Judged) -> None:
    crystal = bulk("Cu", cubic=True) * (4, 4, 4)
    for factor in (0.9, 1.15):
        other = crystal.copy()
        other.set_cell(other.cell * factor, scale_atoms=True)
        assert copper.far(other)
    for other in (rattled(crystal, 0.3), fcc111("Cu", (4, 4, 6), vacuum=8.0), Atoms("Cu2", [[0, 0, 0], [0, 0, 2.22]])):
        assert copper.far(other)


def test_a_set_of_many_compositions_goes_on_to_others(organic: Judged) -> None:
    again = default_structures(ORGANIC, seed=5) + default_structures(ORGANIC, sigma=0.0)
    assert far_share(organic, again) < 0.03
    assert organic.far(aspirin()) == ""
    assert far_share(organic, [rattled(aspirin(), 0.05, seed) for seed in range(20)]) == 0
    assert organic.far(box_of("H2O", 4, 3.1, np.random.default_rng(1))) == ""
    assert far_share(organic, [rattled(aspirin(), 0.3, seed) for seed in range(50)]) > 0.6
    assert organic.far(molecule("CH3Cl"))
    assert "N" in organic.far(molecule("N2"))  # no judged structure has two within reach


def test_every_judged_structure_is_near(organic: Judged, copper: Judged) -> None:
    assert far_structures(organic, default_structures(ORGANIC)) == []
    assert copper.far(rattled(bulk("Cu", cubic=True) * (4, 4, 4), 0.05)) == ""


def test_what_is_far_does_not_depend_on_place_order_or_cell(ethanol: Judged, copper: Judged) -> None:
    atoms = stretched(molecule("CH3CH2OH"), [3], 2, 1.25)
    turned = atoms[[3, 5, 1, 0, 8, 2, 4, 6, 7]]
    turned.rotate(50, (1, 2, 3))
    turned.positions += 100
    boxed = atoms.copy()
    boxed.set_cell([30, 30, 30])
    boxed.pbc = True
    boxed.positions[2] += [30, -60, 0]  # an image of the same atom
    (found,) = {ethanol.far(each).partition(": ")[2] for each in (atoms, turned, boxed)}  # the two numbers
    assert "from the nearest" in found
    crystal = rattled(bulk("Cu", cubic=True), 0.16, 2)
    one, many = copper.far(crystal), copper.far(crystal * (3, 3, 3))
    assert one[-30:] == many[-30:] != ""


def test_json_keeps_it(ethanol: Judged, organic: Judged) -> None:
    for judged in (ethanol, organic):
        text = to_json(judged.as_dict())
        assert len(text) < 20_000
        again = Judged.from_dict(json.loads(text))
        assert again.as_dict() == judged.as_dict()
        for atoms in (molecule("CH3OH"), rattled(molecule("CH3CH2OH"), 0.1), aspirin()):
            assert again.far(atoms) == judged.far(atoms)


def test_the_summary_is_the_same_each_time(organic: Judged) -> None:
    assert Judged.of(default_structures(ORGANIC), CUTOFF).as_dict() == organic.as_dict()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda values: values.pop("reach"),
        lambda values: values.update(reach="far"),
        lambda values: values.update(reach=-1.0),
        lambda values: values.update(limits={}),
        lambda values: values.update(limits=[1, 6, 8]),
        lambda values: values["limits"].update(Xy=1.0),
        lambda values: values["limits"].update(H=float("nan")),
        lambda values: values["closest"].pop("H-C"),
        lambda values: values["surroundings"].update(H="no base 64!"),
        lambda values: values["surroundings"].update(H="AAAA"),
        lambda values: values["surroundings"].update(H=""),
    ],
)
def test_what_cannot_be_read_is_refused(ethanol: Judged, spoil: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(to_json(ethanol.as_dict()))
    spoil(values)
    with pytest.raises(BundleError, match="judged_on of a bundle"):
        Judged.from_dict(values)


def test_structures_that_nothing_answers_for(ethanol: Judged) -> None:
    with pytest.raises(StructureError, match="one structure at least"):
        Judged.of([], CUTOFF)
    with pytest.raises(StructureError, match="no atoms"):
        ethanol.far(Atoms())
    assert far_structures(None, [molecule("N2")]) == []


def with_validation(bundle: Path, content: bytes) -> Bundle:
    return read_bundle(bundle).with_file(VALIDATION, content)


def test_a_bundle_says_what_it_was_judged_on_or_nothing(bundle: Path, ethanol: Judged) -> None:
    values = json.loads((bundle / VALIDATION).read_bytes())
    values.pop(JUDGED_ON, None)
    assert Judged.in_bundle(with_validation(bundle, to_json(values))) is None
    found = Judged.in_bundle(with_validation(bundle, to_json(values | {JUDGED_ON: ethanol.as_dict()})))
    assert found is not None
    assert found.as_dict() == ethanol.as_dict()
    for content in (
        b"{",
        b"[]",
        to_json({JUDGED_ON: 3}),
        to_json({JUDGED_ON: None}),
        to_json({JUDGED_ON: {"reach": 5}}),
    ):
        with pytest.raises(BundleError):
            Judged.in_bundle(with_validation(bundle, content))
