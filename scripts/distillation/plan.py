"""The plan of the training set: the list of molecules, the items built from it, and the split that each is in."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from painn_deploy.export.errors import DatasetError
from painn_deploy.scripts.distillation.molecules import hydrogenated
from painn_deploy.scripts.distillation.structures import Recipe

__all__ = ["MOLECULES", "MONOMERS", "SPLITS", "TESTED", "Item", "Split", "hashed_split", "plan", "read_molecules"]

MOLECULES = Path(__file__).with_name("molecules.smi")
"""The list that the students that ship were made of."""

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
WATER = "O"

# Always in the training split, and the monomers of the dimers and clusters.
MONOMERS = {
    "water": WATER,
    "methane": "C",
    "ammonia": "N",
    "hydrogen": "[H][H]",
    "nitrogen": "N#N",
    "carbon-monoxide": "[C-]#[O+]",
    "carbon-dioxide": "O=C=O",
    "formaldehyde": "C=O",
    "ethane": "CC",
    "ethylene": "C=C",
    "acetylene": "C#C",
    "hydrogen-cyanide": "C#N",
    "methanol": "CO",
    "dimethyl-ether": "COC",
    "methylamine": "CN",
    "formamide": "NC=O",
    "formic-acid": "OC=O",
    "acetic-acid": "CC(=O)O",
    "acetonitrile": "CC#N",
    "nitromethane": "C[N+](=O)[O-]",
    "benzene": "c1ccccc1",
    "pyridine": "c1ccncc1",
    "imidazole": "c1c[nH]cn1",
}
# Always in the test split: what a chemist asks about first, one of each family, and molecules of rMD17.
TESTED = {
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "caffeine": "Cn1c(=O)c2c(ncn2C)n(C)c1=O",
    "ibuprofen": "CC(C)Cc1ccc(cc1)C(C)C(=O)O",
    "paracetamol": "CC(=O)Nc1ccc(O)cc1",
    "salicylic-acid": "OC(=O)c1ccccc1O",
    "azobenzene": "c1ccc(/N=N/c2ccccc2)cc1",
    "naphthalene": "c1ccc2ccccc2c1",
    "toluene": "Cc1ccccc1",
    "uracil": "O=c1cc[nH]c(=O)[nH]1",
    "malonaldehyde": "O=CCC=O",
    "lidocaine": "CCN(CC)CC(=O)Nc1c(C)cccc1C",
    "nicotine": "CN1CCC[C@H]1c1cccnc1",
    "beta-D-glucose": "OC[C@H]1O[C@@H](O)[C@H](O)[C@@H](O)[C@@H]1O",
    "alanine-dipeptide": "CC(=O)N[C@@H](C)C(=O)NC",
    "adenine": "Nc1ncnc2[nH]cnc12",
    "nitrobenzene": "[O-][N+](=O)c1ccccc1",
    "cyclohexanone": "O=C1CCCCC1",
    "tetrahydrofuran": "C1CCOC1",
    "dopamine": "NCCc1ccc(O)c(O)c1",
    "acetone-oxime": "CC(C)=NO",
}
WATER_CLUSTERS = range(2, 21)
WATER_REPLICAS = 3
TRAINED_COMPOSITIONS = ("water*2", "water*3")  # the two- and three-body terms of all water
MIXTURES = ("methanol", "ammonia", "methane", "formamide", "formic-acid", "acetonitrile", "dimethyl-ether", "benzene")
WITH_WATER_UP_TO = 20  # atoms: every smaller training molecule is also paired with one water
CLOSE_UP_TO = 9  # atoms: of smaller training molecules the neighbourhood of the minimum is sampled densely


@dataclass(frozen=True)
class Item:
    """One unit of work. `smiles` are its molecules, or one element symbol where the recipe is `atom`."""

    name: str
    split: Split
    recipe: Recipe
    smiles: tuple[str, ...]


def read_molecules(path: Path) -> dict[str, str]:
    """The SMILES of a list of "SMILES name" lines, by name; blank lines and those that begin with # are comments.

    Raises DatasetError, naming file and line, for what does not parse, is charged, is a radical, or occurs twice.
    """
    from rdkit import Chem

    if not path.is_file():
        raise DatasetError(f"no list of molecules at {path}: give a text file of 'SMILES name' lines with --molecules")
    molecules: dict[str, str] = {}
    seen: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        where = f"{path}, line {number}"
        fields = line.split()
        if len(fields) != 2:
            raise DatasetError(f"{where}: expected 'SMILES name' with one blank between them, found {line!r}")
        smiles, name = fields
        molecule = hydrogenated(smiles)
        if molecule is None:
            raise DatasetError(
                f"{where}: RDKit cannot read the SMILES {smiles!r} of {name}: correct or remove the line"
            )
        if Chem.GetFormalCharge(molecule) or any(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms()):
            raise DatasetError(f"{where}: {name} is charged or a radical: only neutral closed shells are labelled")
        canonical = Chem.MolToSmiles(Chem.RemoveHs(molecule))
        for twin in (name if name in molecules else None, seen.get(canonical)):
            if twin is not None:
                raise DatasetError(f"{where}: {name} is in the list before, as {twin}: remove one of the two lines")
        molecules[name], seen[canonical] = smiles, name
    if not molecules:
        raise DatasetError(f"{path} lists no molecule: write one 'SMILES name' line for each")
    return molecules


def fraction_of(key: str) -> float:
    """A number in [0, 1) that depends on the text alone: Python's own hash differs from run to run."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64


def hashed_split(key: str) -> Split:
    """80 % of all keys train, 8 % validate, 12 % test."""
    fraction = fraction_of(key)
    return "train" if fraction < 0.80 else "validation" if fraction < 0.88 else "test"


def constitution(smiles: str) -> str:
    """The canonical SMILES without stereochemistry, so that stereoisomers are always in the same split."""
    from rdkit import Chem

    return str(Chem.MolToSmiles(Chem.RemoveHs(hydrogenated(smiles)), isomericSmiles=False))


def plan(molecules: dict[str, str], survey: dict[str, str] | None = None) -> list[Item]:
    """All items with their splits: isolated atoms, molecules, dimers and clusters of training molecules and water.

    Dimers and clusters are hashed by what they are made of, so a split never shares a composition with another. The
    molecules of `survey` are sampled lightly and all trained on: they widen the chemistry and leave the test as it is.

    Raises DatasetError where a molecule, or another stereoisomer of it, is in both lists.

    Args:
        molecules: SMILES by name.
        survey: the same of molecules that are sampled lightly.
    """
    fixed: dict[str, Split] = {constitution(smiles): "train" for smiles in MONOMERS.values()}
    fixed |= {constitution(smiles): "test" for smiles in TESTED.values()}
    keys = {name: constitution(smiles) for name, smiles in molecules.items()}
    splits = {name: fixed.get(key, hashed_split(key)) for name, key in keys.items()}
    elements = {atom.GetSymbol() for s in (WATER, *molecules.values()) for atom in hydrogenated(s).GetAtoms()}
    items = [Item(f"atom:{element}", "train", "atom", (element,)) for element in sorted(elements)]
    items += [Item(name, splits[name], "molecule", (smiles,)) for name, smiles in molecules.items()]
    trained = {name: smiles for name, smiles in molecules.items() if splits[name] == "train"}
    dry = {name: smiles for name, smiles in trained.items() if keys[name] != WATER}  # a list may call water otherwise
    monomer_keys = {constitution(smiles) for smiles in MONOMERS.values()}
    monomers = {"water": WATER} | {name: smiles for name, smiles in dry.items() if keys[name] in monomer_keys}
    for pair in [*((one, one) for one in monomers), *combinations(monomers, 2)]:
        replicas = range(WATER_REPLICAS) if "water" in pair else (None,)
        items += (mixture("dimer", pair, monomers, replica) for replica in replicas)
    for name, smiles in dry.items():
        if name not in monomers and hydrogenated(smiles).GetNumAtoms() <= WITH_WATER_UP_TO:
            items.append(mixture("dimer", ("water", name), {"water": WATER, name: smiles}))
    items += clusters(monomers)
    items += surveyed(survey or {}, keys)
    for name, smiles in trained.items():
        if name in monomers or hydrogenated(smiles).GetNumAtoms() <= CLOSE_UP_TO:
            items.append(Item(f"close:{name}", "train", "close", (smiles,)))
    return items


def surveyed(survey: dict[str, str], keys: dict[str, str]) -> Iterator[Item]:
    """The items of a survey, none of them a molecule of the list whose constitutions are `keys`."""
    listed = {key: name for name, key in keys.items()}
    for name, smiles in survey.items():
        if twin := listed.get(constitution(smiles)) or (name if name in keys else None):
            raise DatasetError(f"{name} of the survey is in the list of molecules, as {twin}: remove one of the two")
        yield Item(f"survey:{name}", "train", "survey", (smiles,))


def mixture(recipe: Recipe, parts: Iterable[str], monomers: dict[str, str], replica: int | None = None) -> Item:
    """The item of several molecules together; its split follows from its composition."""
    counts = Counter(parts)
    composition = "+".join(f"{name}*{count}" for name, count in sorted(counts.items()))
    name = f"{recipe}:{composition}" + ("" if replica is None else f"#{replica}")
    smiles = tuple(monomers[part] for part in sorted(counts.elements()))
    return Item(name, "train" if composition in TRAINED_COMPOSITIONS else hashed_split(composition), recipe, smiles)


def clusters(monomers: dict[str, str]) -> Iterator[Item]:
    """Water of every size, as clusters and as dense as the liquid; small clusters of others, alone and with water."""
    for size in WATER_CLUSTERS:
        for replica in range(WATER_REPLICAS):
            yield mixture("cluster", ["water"] * size, monomers, replica)
            yield mixture("liquid", ["water"] * size, monomers, replica)
    for name in MIXTURES:
        if name in monomers:
            for size in (3, 4):
                yield mixture("cluster", [name] * size, monomers)
                yield mixture("liquid", [name] * size, monomers)
            for water in (2, 4):
                yield mixture("cluster", [name, name] + ["water"] * water, monomers)
