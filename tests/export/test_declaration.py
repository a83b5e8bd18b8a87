"""Units and elements that a user names: what is meant is taken, and what cannot be is refused with a hint."""

import numpy as np
import pytest
from ase import units

from painn_deploy.export.declaration import Declaration, joined_species, parse_species, species_text
from painn_deploy.export.errors import DeclarationError
from painn_deploy.export.units import ENERGIES, LENGTHS, energy_unit, length_unit


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("eV", 1.0), ("meV", 1e-3), ("Hartree", units.Hartree), ("Ha", 27.211386), ("Ry", 13.605693),
        ("kcal/mol", 0.0433641), (" kJ/mol ", 0.01036427), ("J/mol", 1.036427e-5), ("cm^-1", 1.239842e-4),
        ("0.0433641", 0.0433641), ("27.2", 27.2),
    ],
)  # fmt: skip
def test_units_of_energy(text: str, value: float) -> None:
    assert energy_unit(text) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(
    ("text", "value"),
    [("Ang", 1), ("Angstrom", 1), ("Å", 1), ("\u212b", 1), ("A", 1), ("Bohr", 0.529177211), ("a0", 0.529177211),
     ("nm", 10), ("pm", 0.01), ("0.529", 0.529)],
)  # fmt: skip
def test_units_of_length(text: str, value: float) -> None:
    assert length_unit(text) == pytest.approx(value, rel=1e-6)


def test_each_unit_is_within_what_a_number_may_be() -> None:
    for known, read in ((ENERGIES, energy_unit), (LENGTHS, length_unit)):
        for name, value in known.items():
            assert read(repr(value)) == read(name) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kcal", "no energy per particle.*did you mean kcal/mol"),
        ("kJ", "no energy per particle.*did you mean kJ/mol"),
        ("J", "no energy per particle.*did you mean J/mol"),
        ("MeV", "'MeV' is no unit of energy.*did you mean meV"),
        ("ev", "did you mean eV"),
        ("hartree", "did you mean Hartree"),
        ("kcal/mole", "did you mean kcal/mol"),
        ("Ang", "no unit of energy that --energy-unit knows"),
        ("", "no unit of energy"),
        ("2.6e22", "between 1e-06 and 1000"),
        ("0", "between"),
        ("-1", "between"),
        ("nan", "between"),
        ("inf", "between"),
    ],
)
def test_what_is_no_energy_per_particle_is_refused(text: str, message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        Declaration.of(energy_unit=text)


@pytest.mark.parametrize(
    ("text", "message"),
    [("bohr", "did you mean Bohr"), ("eV", "no unit of length that --length-unit knows"), ("1e-10", "between 0.001")],
)
def test_what_is_no_length_is_refused(text: str, message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        Declaration.of(length_unit=text)


@pytest.mark.parametrize("given", [["H,C,O"], ["H", "C", "O"], ["H C O"], ["O, C", "H;H"]])
def test_elements_have_one_grammar(given: list[str]) -> None:
    assert parse_species(given) == (1, 6, 8)


@pytest.mark.parametrize("given", [["H", "CL"], ["X"], ["6"], [","]])
def test_what_is_no_element_is_refused(given: list[str]) -> None:
    with pytest.raises(DeclarationError, match="--species"):
        parse_species(given)


def test_elements_that_follow_as_words_of_their_own_are_one_word() -> None:
    line = ["export", "best_model", "--species", "H", "C", "O", "-o", "C", "--species", "N"]
    assert joined_species(line) == ["export", "best_model", "--species", "H,C,O", "-o", "C", "--species", "N"]
    assert joined_species(["export", "--species", "H,C", "best_model"]) == ["export", "--species", "H,C", "best_model"]


def test_elements_that_nobody_named_are_shown_as_unverified() -> None:
    assert species_text((1, 6), verified=True) == "H C"
    assert species_text(tuple(range(1, 90)), verified=False, most=2) == "H He ... (unverified: the embedding's rows)"


def test_a_declaration_survives_a_manifest() -> None:
    made = Declaration.of("kcal/mol", "Bohr", ["H,C"], "energy_U0")
    assert Declaration.from_dict({**made.as_dict(), "remarks": ["x"]}) == made
    assert Declaration().as_dict() == {}
    np.testing.assert_allclose(made.scales("a file"), (0.0433641, 0.52917721), rtol=1e-6)
