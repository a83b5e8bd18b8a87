"""Users' own inputs in the real LAMMPS, in this process and by the command."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.io import write
from ase.md.verlet import VelocityVerlet

from painn_deploy.export.errors import EngineError, PaiNNDeployError, SpeciesError, StructureError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.lammps import start_lammps
from painn_deploy.runtime.programs.lammps_commands import commands_of, elements_of, words_of
from painn_deploy.runtime.programs.lammps_input import THERMO, InputFile

SYMBOLS = ["C", "H", "O"]


@pytest.fixture
def lammps() -> Iterator[Any]:
    instance = start_lammps()
    yield instance
    instance.close()


@pytest.fixture
def calculator(bundle: Path) -> Iterator[PaiNNCalculator]:
    with PaiNNCalculator(bundle) as opened:
        yield opened


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH", cell=[14.0, 15.0, 16.0], pbc=True)
    atoms.center()
    atoms.rattle(0.02, seed=0)
    return atoms


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write("ethanol.data", ethanol(), format="lammps-data", specorder=SYMBOLS, masses=True)
    return tmp_path


INPUT = """
units real  # of the model's authors
atom_style atomic
boundary p p p
pair_style schnetpack
read_data ethanol.data
pair_coeff * * deployed_model 6 1 8
fix move all &
    nve
timestep 0.2
thermo_style custom step pe press
compute atoms all pe/atom
compute sum all reduce sum c_atoms
dump frames all custom 5 frames.dump id type x y z fx fy fz
dump_modify frames sort id format float %.14g
"""


def ran(lammps: Any, calculator: PaiNNCalculator, text: str, **options: Any) -> tuple[InputFile, list[str]]:
    told: list[str] = []
    Path("in.lammps").write_text(text)
    file = InputFile(lammps, calculator, options.get("elements"), told.append)
    file.run(Path("in.lammps"))
    return file, told


def places(lammps: Any, atoms: Atoms) -> np.ndarray:
    order = np.argsort(lammps.numpy.extract_atom("id")[: len(atoms)])
    return np.array(lammps.numpy.extract_atom("x")[: len(atoms)][order])


@pytest.mark.parametrize("unit_system", ["real", "metal"])
def test_an_input_of_another_model_runs_unchanged(
    lammps: Any, calculator: PaiNNCalculator, folder: Path, unit_system: str
) -> None:
    text = INPUT.replace("units real", f"units {unit_system}")
    text = text if unit_system == "real" else text.replace("timestep 0.2", "timestep 0.0002")
    _, told = ran(lammps, calculator, text + "run 20\n")
    assert told == [
        "in.lammps, line 5: `pair_style schnetpack` becomes `pair_style zero 4 nocoeff`: forces are the engine's",
        "in.lammps, line 7: `pair_coeff * * deployed_model 6 1 8` is left out: forces are the engine's",
        "types: 1 C, 2 H, 3 O",
    ]
    atoms = ethanol()
    atoms.calc = calculator
    start = places(lammps, atoms).copy()
    VelocityVerlet(atoms, 0.2 * units.fs).run(20)
    np.testing.assert_allclose(start, atoms.positions, rtol=0, atol=2e-6)
    energy = lammps.get_thermo("pe") / (1.0 if unit_system == "metal" else units.mol / units.kcal)
    assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
    assert lammps.extract_compute("sum", 0, 0) == pytest.approx(lammps.get_thermo("pe"), rel=1e-9)
    assert Path("frames.dump").read_text().count("ITEM: TIMESTEP") == 5


def test_the_box_may_come_in_any_way(lammps: Any, calculator: PaiNNCalculator, folder: Path) -> None:
    crystal = """
units metal
lattice diamond 3.57
region box block 0 2 0 2 0 2
create_box 1 box
create_atoms 1 box
mass 1 12.011
pair_style tersoff
pair_coeff * * SiC.tersoff C
displace_atoms all random 0.02 0.02 0.02 1
fix npt all npt temp 300 300 0.05 iso 0 0 0.5
run 3
write_restart saved
"""
    ran(lammps, calculator, crystal)
    atoms = bulk("C", cubic=True) * (2, 2, 2)
    low, high, *_ = lammps.extract_box()
    cell = np.subtract(high, low)
    calculator.calculate(Atoms(atoms.symbols, places(lammps, atoms), cell=cell, pbc=True))
    assert lammps.get_thermo("pe") == pytest.approx(calculator.results["energy"], abs=1e-3)
    stopped = lammps.get_thermo("pe")
    lammps.command("clear")
    ran(lammps, calculator, "units metal\nread_restart saved\nrun 0\n", elements=["C"])
    assert lammps.get_thermo("pe") == pytest.approx(stopped, rel=1e-7)


def test_loops_and_included_files_run(lammps: Any, calculator: PaiNNCalculator, folder: Path) -> None:
    Path("model.in").write_text("pair_style sw\npair_coeff * * some.sw C H O\n")
    Path("steps.in").write_text("run 2\n")
    text = INPUT.replace("pair_style schnetpack", "include model.in").replace("pair_coeff * * deployed_model 6 1 8", "")
    loop = """
variable turn loop 3
label again
pair_style lj/cut 3.0
print "turn ${turn}" append turns.txt
include steps.in
next turn
jump SELF again
"""
    _, told = ran(lammps, calculator, text + loop, elements=SYMBOLS)
    assert Path("turns.txt").read_text() == "turn 1\nturn 2\nturn 3\n"
    assert lammps.extract_global("ntimestep") == 6
    assert [line.partition(":")[0] for line in told if "becomes" in line] == ["model.in, line 1", "in.lammps, line 19"]


WRONG: list[tuple[str, str, type[PaiNNDeployError], str]] = [
    ("fix move", "angle_style harmonic\nfix move", EngineError, "line 8: `angle_style harmonic` adds forces"),
    ("fix move", "kspace_style ewald 1e-4\nfix move", EngineError, "line 8: `kspace_style ewald` adds forces"),
    ("units real", "units lj", EngineError, "line 8: LAMMPS runs in lj units"),
    ("pair_coeff * * deployed_model 6 1 8", "", SpeciesError, "line 8: Which elements are the 3 .*--elements C,H,O"),
    ("6 1 8", "6 1", SpeciesError, r"line 8: 2 elements \(C, H\) are given for 3 types"),
    ("6 1 8", "6 1 92", SpeciesError, "line 8: .*U"),
    ("ethanol.data", "gone.data", EngineError, "line 6: LAMMPS does not run `read_data gone.data`"),
    ("timestep 0.2", "timestep", EngineError, "line 10: LAMMPS does not run `timestep`"),
    ("timestep 0.2", "run_style respa 2 2", EngineError, "line 10: `run_style respa` never asks"),
    ("timestep 0.2", "include none.in", EngineError, "line 10: An input of LAMMPS cannot be read: there is no file"),
    ("atom_style atomic", "jump SELF nowhere", EngineError, "line 3: There is no `label nowhere` in in.lammps"),
    ("timestep 0.2", "partition yes 1 pair_style lj/cut 3", EngineError, "line 10: `partition` is not run"),
    ("timestep 0.2", "run 2 every 1 'pair_style lj/cut 3'", EngineError, "line 10: LAMMPS would execute `pair_style"),
    ("timestep 0.2", "compute g all group/group all", EngineError, "line 10: LAMMPS's compute g"),
    ("timestep 0.2", "if '1 > 0' then 'bond_style harmonic'", EngineError, "line 10: `bond_style harmonic` adds"),
    ("timestep 0.2", "set atom 1*2 x 0.0 y 0.0 z 0.0", StructureError, "line 16: .*on one spot"),
]


@pytest.mark.parametrize(("here", "there", "error", "message"), WRONG)
def test_what_cannot_be_run_names_its_line(
    lammps: Any,
    calculator: PaiNNCalculator,
    folder: Path,
    here: str,
    there: str,
    error: type[PaiNNDeployError],
    message: str,
) -> None:
    assert here in INPUT
    with pytest.raises(error, match=rf"(?s)^in\.lammps, {message}"):
        ran(lammps, calculator, INPUT.replace(here, there) + "run 2\n")


def energy_of(calculator: PaiNNCalculator, atoms: Atoms) -> float:
    """kcal/mol."""
    calculator.calculate(atoms)
    return float(calculator.results["energy"]) * units.mol / units.kcal


AGAIN = """
variable turn loop 2
label again
clear
units real
atom_style atomic
read_data ethanol.data
pair_style lj/cut 5.0
fix move all nve
run 0
print "$(pe) $(fmax)" append energies
next turn
jump in.lammps again
"""

FIRST = """
variable turn loop 2
label again
INPUT
run 0
print "$(pe) $(fmax)" append energies
clear
next turn
jump SELF again
"""

OTHERS = """
variable file string other.in
variable turn loop 2
INPUT
label again
include ${file}
run 0
print "$(pe) $(fmax)" append energies
if "${turn} == 1" then "pair_style lj/cut 3.0" "pair_coeff * * 0.1 3.0" else "pair_style none"
next turn
jump SELF again
"""

FROM_THE_BEGINNING = """
variable turn loop 2
INPUT
run 0 # then jump to the label
print "$(pe) $(fmax)" append energies
clear
next turn
jump SELF
"""

LOOPS = {
    "a box made again": AGAIN,
    "a box made for the first time in a loop": FIRST,
    "another force field for a while": OTHERS,
    "from the beginning, until a variable ends": FROM_THE_BEGINNING,
}


@pytest.mark.parametrize("name", LOOPS)
def test_no_loop_and_no_condition_leaves_the_engine_out(
    lammps: Any, calculator: PaiNNCalculator, folder: Path, name: str
) -> None:
    Path("other.in").write_text("pair_style lj/cut 3.0\npair_coeff * * 0.1 3.0\n")
    ran(lammps, calculator, LOOPS[name].replace("INPUT", INPUT), elements=SYMBOLS)
    want = energy_of(calculator, ethanol())
    found = np.loadtxt("energies", ndmin=2)
    assert len(found) == 2
    np.testing.assert_allclose(found[:, 0], want, rtol=0, atol=1e-3)
    assert (found[:, 1] > 1.0).all()


def test_atoms_energies_of_a_minimisation_in_a_condition(
    lammps: Any, calculator: PaiNNCalculator, folder: Path
) -> None:
    ran(lammps, calculator, INPUT + "if '1 == 1' then 'minimize 1e-4 1e-4 3 10' 'print \"$(pe) $(c_sum)\" file both'\n")
    whole, summed = np.loadtxt("both")
    assert whole == pytest.approx(summed, rel=1e-9)
    assert whole < energy_of(calculator, ethanol())


def test_what_is_zero_is_told(lammps: Any, calculator: PaiNNCalculator, folder: Path) -> None:
    text = INPUT.replace("step pe press", "step epair pe evdwl") + "compute only all pe/atom pair\nrun 0\n"
    _, told = ran(lammps, calculator, text)
    assert [line for line in told if line.startswith("warning")] == [
        "warning: in.lammps, line 11: epair, evdwl has energies of LAMMPS's own styles, which are 0; `pe` is the "
        "engine's",
        "warning: in.lammps, line 16: what `pair` stands for is 0; the engine's part is that of `fix`",
    ]


def test_a_log_without_a_style_has_the_engine_s_energy(lammps: Any, calculator: PaiNNCalculator, folder: Path) -> None:
    plain = INPUT.replace("thermo_style custom step pe press", "")
    _, told = ran(lammps, calculator, f"{plain}log said\nrun 0\n")
    assert told[-1] == f"`{THERMO}` takes the place of LAMMPS's default, whose E_pair would be 0"
    assert "E_pair" not in Path("said").read_text()
    assert f"{energy_of(calculator, ethanol()):.2f}"[:-3] in Path("said").read_text()
    lammps.command("clear")
    _, told = ran(lammps, calculator, plain.replace("read_data", "thermo_modify norm no\nread_data") + "run 0\n")
    assert told[-1] == "warning: E_pair of LAMMPS's default thermo_style is 0; `pe` is the engine's"


def test_variables_hold_names_of_elements_and_branches_may_be_empty(
    lammps: Any, calculator: PaiNNCalculator, folder: Path
) -> None:
    text = INPUT.replace("pair_style schnetpack", "variable named string 'C H O'\npair_style mace")
    text = text.replace("deployed_model 6 1 8", "m.pt ${named}\ndelete_atoms overlap 0.1 all all")
    _, told = ran(
        lammps, calculator, text + 'if "1 == 2" then "run 1" else "" # all\nrun 0\nwrite_data out.data # it\n'
    )
    assert "types: 1 C, 2 H, 3 O" in told
    assert "Coeffs" not in Path("out.data").read_text()
    assert lammps.get_thermo("pe") == pytest.approx(energy_of(calculator, ethanol()), abs=1e-3)


def test_two_models_name_one_order_of_elements(lammps: Any, calculator: PaiNNCalculator, folder: Path) -> None:
    text = INPUT.replace("deployed_model 6 1 8", "mace m.pt C H O\npair_coeff * * d3 O H C")
    with pytest.raises(SpeciesError, match="line 8: The types are C, H, O by an earlier pair_coeff, and O, H, C by"):
        ran(lammps, calculator, text)


def test_boxes_are_replicated_written_and_read_again(lammps: Any, calculator: PaiNNCalculator, folder: Path) -> None:
    text = INPUT.replace("fix move", "replicate 2 1 1\nfix move") + "run 0\nwrite_data out.data\nclear\n"
    again = "units real\natom_style atomic\nread_data out.data\nfix move all nve\nrun 0\n"
    ran(lammps, calculator, text + again, elements=SYMBOLS)
    want = energy_of(calculator, ethanol() * (2, 1, 1))
    assert lammps.get_thermo("pe") == pytest.approx(want, abs=2e-3)


def test_the_force_field_of_a_restart_is_replaced(lammps: Any, calculator: PaiNNCalculator, folder: Path) -> None:
    lammps.commands_string(f"{INPUT.partition('pair_style')[0]}read_data ethanol.data\npair_style lj/cut 3.0\n")
    lammps.commands_string("pair_coeff * * 0.1 3.0\nrun 0\nwrite_restart saved\nclear\n")
    _, told = ran(lammps, calculator, "units real\nread_restart saved\nfix move all nve\nrun 0\n", elements=SYMBOLS)
    assert "`pair_style lj/cut` of the restart becomes `zero`: forces are the engine's" in told
    assert lammps.get_thermo("pe") == pytest.approx(energy_of(calculator, ethanol()), abs=1e-3)


def test_a_box_may_be_empty_for_a_while(lammps: Any, calculator: PaiNNCalculator, folder: Path) -> None:
    ran(lammps, calculator, INPUT + "run 0\ndelete_atoms group all\nrun 1\n")
    assert lammps.get_thermo("pe") == 0.0


def test_a_file_that_includes_itself_ends(lammps: Any, calculator: PaiNNCalculator, folder: Path) -> None:
    Path("self.in").write_text("print again\ninclude self.in\n")
    with pytest.raises(EngineError, match=r"^self\.in, line 2: self\.in is included 16 files deep"):
        ran(lammps, calculator, "include self.in\n")


def test_without_a_box_there_is_nothing_to_compute(lammps: Any, calculator: PaiNNCalculator, folder: Path) -> None:
    with pytest.raises(EngineError, match=r"in\.lammps computes nothing with the engine"):
        ran(lammps, calculator, "units metal\n# nothing\n")
    with pytest.raises(EngineError, match="An input of LAMMPS cannot be read: there is no file gone"):
        InputFile(lammps, calculator).run(Path("gone"))


def test_elements_in_another_order_than_their_masses_are_told(
    lammps: Any, calculator: PaiNNCalculator, folder: Path
) -> None:
    _, told = ran(lammps, calculator, INPUT + "run 0\n", elements=["H", "C", "O"])
    assert [line for line in told if line.startswith("warning")] == [
        "warning: in.lammps, line 7: `pair_coeff * * deployed_model 6 1 8` names other elements than --elements, which "
        "are taken",
        "warning: type 1 is to be H and has a mass of 12.011, which is that of C: are the elements in the order of the "
        "types?",
        "warning: type 2 is to be C and has a mass of 1.008, which is that of H: are the elements in the order of the "
        "types?",
    ]


def test_heavy_hydrogen_is_not_told(lammps: Any, calculator: PaiNNCalculator, folder: Path) -> None:
    _, told = ran(lammps, calculator, INPUT + "mass 2 3.024\nrun 0\n")
    assert not [line for line in told if line.startswith("warning")]


def test_commands_are_those_of_lammps() -> None:
    text = 'units &\n  metal\n\n# a comment\nprint """one\n  # two\n"""  # after\nrun 3 # steps\nrun &\n'
    found = commands_of(text)
    assert [(command.line, command.text) for command in found] == [
        (1, "units   metal"),
        (5, 'print """one\n  # two\n"""  # after'),
        (8, "run 3 # steps"),
        (9, "run"),
    ]
    assert found[2].words == ["run", "3"]


@pytest.mark.parametrize(
    ("style", "words", "want"),
    [
        ("nequip", "* * model.pth C H O", ["C", "H", "O"]),
        ("schnetpack", "* * model 6 1 8", ["C", "H", "O"]),
        ("lj/cut", "* * 1 1", []),
        ("eam/alloy", "* * NiAl.alloy NULL Ni", []),
        ("tersoff", "1 2 Si C", []),
        ("sw", "* * Si.sw Si", ["Si"]),
    ],
)
def test_elements_are_those_that_the_model_names(style: str, words: str, want: list[str]) -> None:
    assert elements_of(style, words.split()) == want


def command(bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "painn_deploy.scripts.cli", "lammps", str(bundle), *arguments]
    return subprocess.run(whole, capture_output=True, text=True, check=False)


def test_the_command_runs_an_input_in_the_current_folder(bundle: Path, folder: Path) -> None:
    Path("in.lammps").write_text(INPUT.replace("6 1 8", "") + "run ${steps}\n")
    done = command(bundle, "in.lammps", "--elements", "C,H,O", "--", "-var", "steps", "3")
    assert done.returncode == 0, done.stderr
    assert "Loop time of" in done.stdout
    assert "New timer settings" not in done.stdout
    assert "becomes `pair_style zero 4 nocoeff`: forces are the engine's" in done.stderr
    assert {path.name for path in folder.iterdir()} >= {"log.lammps", "frames.dump"}
    refused = command(bundle, "in.lammps", "--", "-in", "other.lammps")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: LAMMPS's option -in has no place here")
    gone = command(bundle, "gone.lammps")
    assert gone.returncode == 2
    assert "there is no file gone.lammps" in gone.stderr


def test_words_are_told_apart_as_lammps_does() -> None:
    text = 'if "${i} == 1" then \'print "a # b"\' """x\n y""" z#w'
    assert words_of(text) == ["if", "${i} == 1", "then", 'print "a # b"', "x\n y", "z"]
    assert words_of(text, raw=True)[1:4] == ['"${i} == 1"', "then", "'print \"a # b\"'"]
