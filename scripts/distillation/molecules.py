"""Molecules from SMILES: RDKit's conformers, bond graph and force field. Lengths in Å, energies in eV."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from jaxtyping import Int

from painn_deploy.export.errors import DatasetError

__all__ = ["Mechanics", "Molecule", "embedded", "hydrogenated"]


@dataclass(frozen=True)
class Molecule:
    """A molecule's conformers and its bond graph."""

    conformers: list[Any]
    rdkit: Any  # kept because the force field points into it
    force_field: Any  # what relaxed them
    bonds_between: Int[np.ndarray, "atoms atoms"]  # number of bonds on the shortest path
    bonds: Int[np.ndarray, "bonds 2"]
    bridges: Int[np.ndarray, "bridges 2"]  # the bonds outside rings


def hydrogenated(smiles: str) -> Any:
    """The RDKit molecule of a SMILES with its hydrogens, or None where RDKit cannot read it."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
    return None if molecule is None else Chem.AddHs(molecule)


def embedded(smiles: str, count: int, seed: int) -> Molecule:
    """Up to `count` ETKDG conformers, relaxed with MMFF94 where it knows the atoms and with UFF where it does not.

    Raises DatasetError for a molecule that RDKit cannot embed.

    Args:
        smiles: of the molecule.
        count: conformers at most.
        seed: of the embedding.
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    molecule = hydrogenated(smiles)
    with rdBase.BlockLogs():
        found = rdDistGeom.EmbedMultipleConfs(molecule, count, randomSeed=seed % 2**31)
        if len(found) == 0:
            raise DatasetError(f"RDKit finds no 3-D conformer of {smiles}: take the molecule out of the list")
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(molecule):
            rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(molecule)
        elif rdForceFieldHelpers.UFFHasAllMoleculeParams(molecule):
            rdForceFieldHelpers.UFFOptimizeMoleculeConfs(molecule)
    numbers = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
    ends = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), bond.IsInRing()) for bond in molecule.GetBonds()]
    return Molecule(
        conformers=[Atoms(numbers, conformer.GetPositions()) for conformer in molecule.GetConformers()],
        rdkit=molecule,
        force_field=molecular_mechanics(molecule),
        bonds_between=Chem.GetDistanceMatrix(molecule).astype(np.int64),
        bonds=np.array([(i, j) for i, j, _ in ends], dtype=np.int64).reshape(-1, 2),
        bridges=np.array([(i, j) for i, j, ring in ends if not ring], dtype=np.int64).reshape(-1, 2),
    )


def molecular_mechanics(molecule: Any) -> Any:
    """RDKit's force field of a molecule with conformers: MMFF94, or UFF, or None where neither knows its atoms."""
    from rdkit import rdBase
    from rdkit.Chem import rdForceFieldHelpers

    with rdBase.BlockLogs():
        if (parameters := rdForceFieldHelpers.MMFFGetMoleculeProperties(molecule)) is not None:
            field = rdForceFieldHelpers.MMFFGetMoleculeForceField(molecule, parameters)
        elif rdForceFieldHelpers.UFFHasAllMoleculeParams(molecule):
            field = rdForceFieldHelpers.UFFGetMoleculeForceField(molecule)
        else:
            return None
    field.Initialize()
    return field


class Mechanics(Calculator):
    """Forces of RDKit's force field in eV/Å: a label costs a thousand times as much, so it may lead the dynamics."""

    implemented_properties = ("energy", "forces")

    def __init__(self, field: Any) -> None:
        super().__init__()
        self.field = field

    def calculate(self, atoms: Any = None, properties: Any = ("forces",), system_changes: Any = all_changes) -> None:
        """ASE's entry: energy (eV) and forces (eV/Å) of the force field.

        Args:
            atoms: the structure.
            properties: ASE passes them; all are computed.
            system_changes: ASE passes them; not used.
        """
        super().calculate(atoms, properties, system_changes)
        positions = atoms.positions.ravel().tolist()
        energy = self.field.CalcEnergy(positions)  # first: CalcGrad alone takes the distances of the call before it
        gradient = np.reshape(self.field.CalcGrad(positions), (-1, 3))
        per_mole = units.kcal / units.mol
        self.results = {"energy": energy * per_mole, "forces": -gradient * per_mole}
