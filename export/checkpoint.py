"""From a file to a student: whatever the file is, nothing in it is ever executed."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from painn_deploy.export.declaration import Declaration, species_text
from painn_deploy.export.errors import CheckpointError, ConfigurationError, DeclarationError, PaiNNDeployError
from painn_deploy.export.model.committee import Committee
from painn_deploy.export.model.distiller import Distiller
from painn_deploy.export.model.layout import remarks_on
from painn_deploy.export.model.painn import PaiNN
from painn_deploy.export.model.student import Configuration, Student
from painn_deploy.export.model.weights import check_student, check_tensors
from painn_deploy.export.originals import read_original
from painn_deploy.export.parsing import UnreadableError
from painn_deploy.export.plain import read_safetensors, read_torch, unwrapped
from painn_deploy.export.readers.archive import Archive, is_tensor
from painn_deploy.export.readers.legacy import is_legacy, repacked
from painn_deploy.export.readers.pickles import check_names
from painn_deploy.export.readers.reader import Opened
from painn_deploy.export.reading import AbsentError, read_json, read_regular
from painn_deploy.export.units import energy_unit, length_unit

__all__ = [
    "ARCHITECTURES",
    "Checkpoint",
    "build_student",
    "find_checkpoint",
    "load_checkpoint",
    "load_student",
    "read_weights",
    "resolve_checkpoint",
]

ARCHITECTURES: Mapping[str, type[PaiNN] | type[Distiller]] = {"painn": PaiNN, "distiller": Distiller}
SHIPPED = Path(__file__).parent / "students"
LONGEST_NAME = 150
LARGEST, LARGEST_JSON = 2**31, 2**20
"""Bytes of a checkpoint, and of the configuration beside it; a student has a few million, and a few hundred."""

DEEPEST = 4
"""Lists and mappings inside each other in a configuration."""

ZIP, PICKLE = b"PK\x03\x04", b"\x80"
READ = (
    "What can be read: .safetensors or .pt with weights alone and their configuration as JSON beside them; PaiNNs that "
    "SchNetPack (best_model, best_inference_model, a .ckpt of Lightning, TorchScript of spkdeploy), graph-pes, "
    "NeuralForceField, PaiNN-model, cPaiNN or curator saved; student:base."
)


@dataclass(frozen=True)
class Checkpoint:
    """Where a student's weights are.

    Attributes:
        path: of the file.
        name: what bundles are named after.
        sha256: of the file's bytes.
        declared: what its owner said of it, as it was used; None where nothing was said.
        remarks: sentences that whoever uses it should read.
    """

    path: Path
    name: str
    sha256: str
    declared: Declaration | None = None
    remarks: tuple[str, ...] = ()

    def as_declared(self) -> dict[str, Any]:
        """What a manifest keeps of it, see `Manifest.declared`; JSON types."""
        said = {} if self.declared is None else self.declared.as_dict()
        return said | ({"remarks": list(self.remarks)} if self.remarks else {})


def find_checkpoint(checkpoint: str | Path) -> tuple[Path, str]:
    """Find a checkpoint by path, or one that ships by its name, such as `student:base`; the file is not read.

    Returns:
        The file, and the name that its bundles bear.

    Raises:
        CheckpointError: there is no such file or student.
    """
    text = str(checkpoint)
    if text.startswith("student:"):
        size = text.removeprefix("student:")
        shipped = sorted(path.stem for path in SHIPPED.glob("*.safetensors"))
        if size not in shipped:
            listed = ", ".join(f"student:{name}" for name in shipped) or "none"
            raise CheckpointError(f"No student named {text!r} ships with this version; those that do: {listed}.")
        return SHIPPED / f"{size}.safetensors", f"student-{size}"
    path = Path(checkpoint)
    try:
        folder, there = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:  # too long a name, for one
        raise CheckpointError(f"There is no file {text[:60]!a} ({error}). {READ}") from error
    if folder:
        raise CheckpointError(f"{path} is a folder. Give the file in it that holds the model. {READ}")
    if not there:
        raise CheckpointError(f"There is no file {path}. {READ}")
    if len(path.stem) > LONGEST_NAME:
        raise CheckpointError(f"{path.stem[:40]}... is too long a name to name bundles after; rename the file.")
    return path, path.stem


def resolve_checkpoint(checkpoint: str | Path) -> Checkpoint:
    """Find a checkpoint as `find_checkpoint` does, and hash its file.

    Raises:
        CheckpointError: there is no such file or student, or it cannot be read.
    """
    path, name = find_checkpoint(checkpoint)
    return Checkpoint(path, name, hashlib.sha256(_content(path)).hexdigest())


def load_student(
    path: str | Path, *, dtype: torch.dtype = torch.float32, declared: Declaration | None = None
) -> Student:
    """Load a student force field: the torch model that is the reference for every engine made from it.

    The file is known by its content. Weights alone come with a configuration: JSON beside them (same stem, .json), or
    inside them. What a training code saved says it all but units and elements. Pickles are never executed.

    Args:
        path: of the file, or the name of a student that ships, such as `student:base`.
        dtype: torch.float32 or torch.float64, of weights and arithmetic.
        declared: units, elements and the energy's name, of a file that does not say.

    Returns:
        The student in evaluation mode, its parameters frozen.

    Raises:
        CheckpointError: the file is missing, corrupt, a pickle that names what we do not know, or not of a known
            architecture.
        ConfigurationError: the configuration is missing, lacks a key, or does not fit the weights.
        DeclarationError: a unit is needed and was not named, or what was declared contradicts the file.
    """
    return load_checkpoint(path, dtype=dtype, declared=declared)[0]


def load_checkpoint(
    path: str | Path, *, dtype: torch.dtype = torch.float32, declared: Declaration | None = None
) -> tuple[Student, Checkpoint]:
    """Load a student as `load_student` does, together with the hash of the very bytes that its weights came from.

    Args:
        path: see `load_student`.
        dtype: see `load_student`.
        declared: see `load_student`.

    Returns:
        The student, and its checkpoint; the file is read once for both.

    Raises:
        CheckpointError: see `load_student`.
        ConfigurationError: see `load_student`.
        DeclarationError: see `load_student`.
    """
    state, configuration, made = read_weights(path, declared)
    return build_student(state, configuration, str(made.path), dtype=dtype), made


def load_committee(
    paths: Sequence[str | Path], *, dtype: torch.dtype = torch.float32, declared: Declaration | None = None
) -> tuple[Committee, Checkpoint, list[Checkpoint]]:
    """Load several students as one committee.

    Args:
        paths: of two students or more, see `load_student`.
        dtype: see `load_student`.
        declared: see `load_student`; of all of them.

    Returns:
        The committee; a checkpoint that stands for all, with the name of the first and the number of the others, and
        the hash of their hashes in this order; and each one's own.

    Raises:
        CheckpointError: see `load_student`; or a file is given twice.
        ConfigurationError: there are fewer than two, or they differ in more than their weights.
    """
    loaded = [load_checkpoint(path, dtype=dtype, declared=declared) for path in paths]
    made = [checkpoint for _, checkpoint in loaded]
    for index, one in enumerate(made):
        if twin := next((other for other in made[:index] if other.sha256 == one.sha256), None):
            raise CheckpointError(
                f"{one.path} holds the same bytes as {twin.path}: they are one member, and counted twice "
                "it would make the spread too small. Give each once."
            )
    committee = Committee([student for student, _ in loaded], [str(one.path) for one in made])
    digest = hashlib.sha256("".join(one.sha256 for one in made).encode()).hexdigest()
    remarks = tuple(dict.fromkeys(remark for one in made for remark in one.remarks))
    whole = Checkpoint(made[0].path, committee_name([one.name for one in made]), digest, made[0].declared, remarks)
    return committee.eval(), whole, made


def committee_name(names: Sequence[str]) -> str:
    """What bundles of a committee are named after: its first member, and how many others there are."""
    return f"{names[0]}+{len(names) - 1}"


def read_weights(
    path: str | Path, declared: Declaration | None = None
) -> tuple[Mapping[str, Tensor], Configuration, Checkpoint]:
    """Read what a student is made of; the weights are not looked at yet.

    Args:
        path: see `load_student`.
        declared: see `load_student`.

    Returns:
        Tensors in eV and Å by the training code's names, in the precision that they were stored in; the configuration;
        and the checkpoint.

    Raises:
        CheckpointError: see `load_student`.
        ConfigurationError: see `load_student`.
        DeclarationError: see `load_student`.
    """
    file, name = find_checkpoint(path)
    content = _content(file)
    declared = declared or Declaration()
    declared.check()
    with _in_words(str(file)):
        state, configuration, remarks = _read(content, file, declared)
        remarks += remarks_on(state)
    said = None if declared == Declaration() else declared
    return state, configuration, Checkpoint(file, name, hashlib.sha256(content).hexdigest(), said, remarks)


def build_student(
    state: Mapping[str, Tensor], configuration: Configuration, source: str, *, dtype: torch.dtype = torch.float32
) -> Student:
    """Make a student of what `read_weights` gives.

    Args:
        state: tensors by the training code's names.
        configuration: that they are held against.
        source: the file, for messages.
        dtype: see `load_student`.

    Raises:
        CheckpointError: the tensors are not those of a known architecture.
        ConfigurationError: they are not what the configuration says.
    """
    if dtype not in (torch.float32, torch.float64):
        raise CheckpointError(f"Students are loaded in float32 or float64, not in {dtype}.")
    if configuration.architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{source} is of the architecture {configuration.architecture!r}; "
            f"this version deploys {', '.join(sorted(ARCHITECTURES))}."
        )
    check_tensors(state, source)
    with _in_words(source, f"does not hold the tensors of {configuration.architecture}"):
        student = ARCHITECTURES[configuration.architecture].from_state_dict(configuration, state, source)
    student = student.to(dtype).eval().requires_grad_(False)
    check_student(student, source)
    return student


@contextmanager
def _in_words(source: str, what: str = "cannot be read: it is corrupt") -> Iterator[None]:
    """Whatever a file that nobody wrote so makes a reader raise, it means the same to its user."""
    try:
        yield
    except PaiNNDeployError:
        raise
    except Exception as error:  # of Python, of zip files, of torch: they share no base class but this one
        raise CheckpointError(f"{source} {what} ({type(error).__name__}: {str(error)[:200]}).") from error


def _read(
    content: bytes, path: Path, declared: Declaration
) -> tuple[Mapping[str, Tensor], Configuration, tuple[str, ...]]:
    """Tensors in eV and Å by the training code's names, the configuration, and remarks."""
    if not content:
        raise CheckpointError(f"{path} is empty. {READ}")
    beside = _beside(path)
    if is_legacy(content):
        content = repacked(content, str(path))
    if content.startswith(ZIP):
        archive = Archive(content, str(path))
        tree = archive.tree()
        found = read_original(Opened(archive, tree, path, beside), declared)
        if found is not None:
            configuration = Configuration.from_mapping(found.configuration, str(path))
            return found.tensors, _with_species(configuration, declared, path), found.remarks
        things, inside = unwrapped(tree, path, is_tensor)
        tensors = {name: archive.tensor(thing, name) for name, thing in things.items()}
        inside = {key: _number(archive, value) for key, value in inside.items()}
    elif path.suffix == ".safetensors" or content[8:9] == b"{":
        tensors, inside = read_safetensors(content, path)
    elif path.suffix == ".pt" or content.startswith(PICKLE):
        check_names(content, str(path))
        tensors, inside = read_torch(content, path)
    else:
        raise CheckpointError(f"{path} is of no kind that we know. {READ}")
    return tensors, _with_species(_configuration(path, inside, beside), _of_ours(declared, path), path), ()


def _of_ours(declared: Declaration, path: Path) -> Declaration:
    """What may be said of a file in eV and Å whose energy has one name."""
    values = declared.as_dict()
    units = {"energy_unit": energy_unit, "length_unit": length_unit}
    wrong = [key for key, value in units.items() if key in values and value(values[key]) != 1.0]
    if wrong or declared.energy_key is not None:
        key = wrong[0] if wrong else "energy_key"
        raise DeclarationError(
            f"{path} is in eV and Å by its format: --{key.replace('_', '-')} {values[key]} is for files that do not "
            "say. Leave it out."
        )
    return declared


def _with_species(configuration: Configuration, declared: Declaration, path: Path) -> Configuration:
    """The configuration with the elements that were declared, which do not contradict its own."""
    if declared.species is None:
        return configuration
    if configuration.species not in (None, declared.species):
        raise DeclarationError(
            f"{path} was trained on {species_text(configuration.species or (), verified=True)}, as its configuration "
            f"says, and --species says {species_text(declared.species, verified=True)}. Leave --species out."
        )
    return replace(configuration, species=declared.species)


def _number(archive: Archive, value: Any) -> Any:
    """A value of a configuration, where one that is in a tensor is taken out."""
    if not is_tensor(value):
        return value
    tensor = archive.tensor(value, "a value of the configuration", integers=True)
    return tensor.item() if tensor.numel() == 1 else value


def _content(path: Path) -> bytes:
    try:
        return read_regular(path, LARGEST, follow=True)
    except UnreadableError as error:
        raise CheckpointError(f"Cannot read a checkpoint: {error}. {READ}") from error


def _beside(path: Path) -> dict[str, Any] | None:
    """The JSON beside the file."""
    try:
        return read_json(path.with_suffix(".json"), LARGEST_JSON, follow=True, finite=False)
    except AbsentError:
        return None
    except UnreadableError as error:
        raise ConfigurationError(f"The configuration of {path} cannot be read: {error}.") from error


def _configuration(path: Path, inside: Mapping[Any, Any], values: Mapping[str, Any] | None) -> Configuration:
    beside = path.with_suffix(".json")
    if values is None and not inside:
        raise ConfigurationError(
            f"{path} holds no configuration and there is no {beside.name} beside it. Write one with architecture, "
            "hidden_dim, num_interactions, num_rbf and cutoff."
        )
    if not _plain(inside, DEEPEST):
        raise ConfigurationError(f"{path} holds a configuration of other things than texts, numbers and lists of them.")
    read = values or {}
    if disagree := sorted(key for key in read.keys() & inside.keys() if read[key] != inside[key]):
        raise ConfigurationError(f"{beside} and {path} disagree about {', '.join(disagree)}; make them say the same.")
    return Configuration.from_mapping({**inside, **read}, str(beside if read else path))


def _plain(value: Any, depth: int) -> bool:
    """Whether a value is one that JSON can hold, with no more than so many lists and mappings inside each other."""
    if isinstance(value, dict):
        return depth > 0 and all(isinstance(key, str) and _plain(each, depth - 1) for key, each in value.items())
    if isinstance(value, list | tuple):
        return depth > 0 and all(_plain(each, depth - 1) for each in value)
    return value is None or isinstance(value, str | int | float)
