"""Whose file one is, among the codes that train PaiNNs; and the model in it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from painn_deploy.export.declaration import Declaration
from painn_deploy.export.errors import CheckpointError, ConfigurationError
from painn_deploy.export.readers.curator import CURATOR
from painn_deploy.export.readers.dtu import DTU
from painn_deploy.export.readers.foreign import model_of_weights
from painn_deploy.export.readers.graph_pes import GRAPH_PES
from painn_deploy.export.readers.nff import NFF
from painn_deploy.export.readers.reader import Opened, Potential, Reader
from painn_deploy.export.readers.stand_ins import StandIn
from painn_deploy.export.schnetpack.files import SCHNETPACK, is_plain

__all__ = ["READERS", "read_original"]

READERS: Sequence[Reader] = (SCHNETPACK, GRAPH_PES, NFF, DTU, CURATOR)
"""Of each code, one."""

WRAPPED = ("module", "_orig_mod", "model")
"""What wrappers of modules call the module in them."""

DEEPEST, MOST = 3, 1_000
"""Steps that a model may lie inside a file, and things of it that are looked at, to say where it is."""

CODE = "code"
"""Names the code in the JSON beside a file, where the file leaves it open."""


def read_original(opened: Opened, declared: Declaration) -> Potential | None:
    """Read the model that a training code saved; None where a file holds tensors alone, in our own format.

    Args:
        opened: the file.
        declared: what its owner says of it.

    Raises:
        CheckpointError: it is no model that can be deployed, or two codes could have written it.
        ConfigurationError: what lies beside the file is wrong.
        DeclarationError: its owner has to say more.
    """
    reader = _reader(opened)
    tree = dict.fromkeys(opened.tree.parameters()) if isinstance(opened.tree, StandIn) else opened.tree
    if reader is None and (model := model_of_weights(tree)) is not None:
        raise CheckpointError(f"{opened.path} holds {model}. It cannot be deployed.")
    if reader is None and (inside := _inside(opened)) is not None:
        place, code = inside
        raise CheckpointError(
            f"{opened.path} holds what {code} saved inside something else, and not alone. Where you trained it, load "
            f"the file as `saved`, and torch.save(saved{place}, 'model.pt')."
        )
    if reader is None and is_plain(opened.tree, opened.path.suffix):
        return None
    return (reader or SCHNETPACK).read(opened, declared)  # SchNetPack's says best what a file is not


def _inside(opened: Opened) -> tuple[str, str] | None:
    """Where in a file a model lies that a reader would claim by itself, and of which code it is."""
    left: list[tuple[str, Any, int]] = [("", opened.tree, 0)]
    for place, held, depth in left:
        claiming = [reader.code for reader in READERS if depth and reader.claims(replace(opened, tree=held))]
        if claiming:
            return place, claiming[0]
        found: Iterable[tuple[str, Any]] = ()
        match held:
            case StandIn():
                found = [(f".{name}", part) for name, part in held.children() if name in WRAPPED]
            case Mapping():
                found = [(f"[{key!r}]", part) for key, part in held.items() if isinstance(key, str)]
            case list() | tuple():
                found = [(f"[{index}]", part) for index, part in enumerate(held)]
        left += [(place + step, part, depth + 1) for step, part in found if depth < DEEPEST and len(left) < MOST]
    return None


def _reader(opened: Opened) -> Reader | None:
    claiming = [reader for reader in READERS if reader.claims(opened)]
    if (said := (opened.beside or {}).get(CODE)) is not None:
        named = [reader for reader in READERS if reader.code == said]
        if not named:
            known = ", ".join(reader.code for reader in READERS)
            raise ConfigurationError(
                f"The JSON beside {opened.path} says {CODE} = {str(said)[:80]!r}; what can be read is of {known}."
            )
        if claiming and named[0] not in claiming:
            raise ConfigurationError(
                f"The JSON beside {opened.path} says {CODE} = {named[0].code!r}, and the file is one of "
                f"{' or '.join(reader.code for reader in claiming)}. Leave {CODE} out."
            )
        return named[0]
    if len(claiming) > 1:
        codes = [reader.code for reader in claiming]
        raise CheckpointError(
            f"{opened.path} could have been written by {' or by '.join(codes)}, whose models differ. Say which in "
            f'{opened.path.with_suffix(".json").name} beside it, as {{"{CODE}": "{codes[0]}"}}.'
        )
    return claiming[0] if claiming else None
