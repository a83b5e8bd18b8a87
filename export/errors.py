"""Every error that painn-deploy raises on purpose: one small tree, documented here.

A message names the thing that is wrong and says what to do about it. The built-in class in the bases is what a caller
who has never heard of painn-deploy would catch.

    PaiNNDeployError
    ├── CheckpointError        a checkpoint that is missing, corrupt, a pickle, or of an architecture we do not know
    │   ├── ConfigurationError     its configuration lacks a key, or holds a value that does not fit the weights
    │   └── DeclarationError       units or elements that its owner did not name, or that contradict it
    ├── StructureError         atoms that no force field can answer for: none, NaN, two on one spot, a flat cell
    │   └── SpeciesError           an element that the student has no embedding for
    ├── DatasetError           training or validation data that cannot be used
    ├── ExportError            a graph that cannot be made, or would not keep the graph contract
    │   ├── ParityError            the exported graph's energies or forces are not the student's
    │   └── PrecisionError         a precision that cannot be had within the tolerance that was asked for
    ├── BundleError            a bundle with a missing, altered or foreign file, or of a format that we cannot read
    ├── EngineError            an engine that failed to build, load or run
    │   ├── EngineUnavailableError  a backend or device that is asked for and is not here
    │   ├── DeviceMemoryError       a GPU that has too little free memory
    │   ├── OwnershipError          an open engine in the hands of another thread, or of a process forked from its own
    │   └── ShapeError              arrays that do not keep the graph contract, or lie outside every shape profile
    ├── ServerError            a server that a driver answers: not there, gone before its end, or silent
    └── OutputError            a file or folder that cannot be written, or would be overwritten
"""

__all__ = [
    "BundleError",
    "CheckpointError",
    "ConfigurationError",
    "DatasetError",
    "DeclarationError",
    "DeviceMemoryError",
    "EngineError",
    "EngineUnavailableError",
    "ExportError",
    "OutputError",
    "OwnershipError",
    "PaiNNDeployError",
    "ParityError",
    "PrecisionError",
    "ServerError",
    "ShapeError",
    "SpeciesError",
    "StructureError",
]


class PaiNNDeployError(Exception):
    """The root: catch it to catch all that painn-deploy raises on purpose."""


class CheckpointError(PaiNNDeployError, ValueError):
    """A checkpoint that is missing, corrupt, a pickle, or of an architecture we do not know."""


class ConfigurationError(CheckpointError):
    """A student's configuration lacks a key, or holds a value that does not fit the weights."""


class DeclarationError(CheckpointError):
    """What its owner says of a checkpoint is missing, is no unit or element, or contradicts the file."""


class StructureError(PaiNNDeployError, ValueError):
    """Atoms that no force field can answer for: none at all, NaN positions, two on one spot, a flat cell."""


class SpeciesError(StructureError):
    """An element that the student has no embedding for."""


class DatasetError(PaiNNDeployError, ValueError):
    """Training or validation data that cannot be used."""


class ExportError(PaiNNDeployError, RuntimeError):
    """A graph that cannot be made, or would not keep the graph contract."""


class ParityError(ExportError):
    """The exported graph's energies, forces or virials are not the student's."""


class PrecisionError(ExportError):
    """A precision that cannot be had within the tolerance that was asked for."""


class BundleError(PaiNNDeployError, ValueError):
    """A bundle with a missing, altered or foreign file, or of a format that this version cannot read."""


class EngineError(PaiNNDeployError, RuntimeError):
    """An engine that failed to build, load or run."""


class EngineUnavailableError(EngineError):
    """A backend or a device that is asked for and is not here; the message names what to install."""


class DeviceMemoryError(EngineError):
    """A GPU that has too little free memory."""


class OwnershipError(EngineError):
    """An open engine is used by another thread at the same time, or in a process forked from the one that opened it."""


class ShapeError(EngineError):
    """Arrays that do not keep the graph contract, or lie outside every shape profile of the engine."""


class ServerError(PaiNNDeployError, ConnectionError):
    """A server that a driver answers is not there, went away before it was done, or fell silent."""


class OutputError(PaiNNDeployError, OSError):
    """A file or folder that cannot be written, or that would be overwritten."""
