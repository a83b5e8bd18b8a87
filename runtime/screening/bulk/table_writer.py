"""Rows as a table of Arrow's: the columns of those that are side by side without a row of Python's between."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from painn_deploy.runtime.screening.bulk.results import Done, Rows
from painn_deploy.runtime.screening.sinks import table_bytes, table_schema
from painn_deploy.runtime.screening.table_rows import columns, is_storable, notes_json, storable
from painn_deploy.runtime.structures import bounds_of
from painn_deploy.runtime.uncertainty.scale import FLAG, OF_ATOMS, OF_STRUCTURE

__all__ = ["encoded_table"]


def encoded_table(done: Done, rows: Rows, uncertainties: Sequence[str]) -> bytes:
    """The bytes of a part.

    Args:
        done: its rows.
        rows: made them; what is kept otherwise than it came is told there.
        uncertainties: see `Sink.encoded`.
    """
    import pyarrow

    block, places = done.block, done.block.places
    frame_of = dict(zip(places[done.side_by_side].tolist(), done.side_by_side.tolist(), strict=True))
    finite = np.isfinite(block.frames.cells).all((1, 2)).tolist()
    alone, apart, frames = list[dict[str, Any]](), list[int](), list[int]()
    ids, infos = list[str | None](), list[str | None]()
    for place in range(block.count):
        index, frame, notes = block.first + place, frame_of.get(place), block.notes[place]
        if frame is None or notes is None or not (finite[frame] and is_storable(notes)):
            row = done.alone[place] if frame is None else done.row_of(frame, rows)
            alone.append(columns(row, index, rows.remarks, uncertainties))
            apart.append(place)
            continue
        frames.append(frame)
        name = notes.get("id")
        ids.append(None if name is None else storable(name, index, rows.remarks))
        infos.append(notes_json(notes, index, rows.remarks) if len(notes) > ("id" in notes) else None)
    schema = table_schema(uncertainties)
    table = _table(done, np.array(frames, np.int64), ids, infos, schema)
    if alone:
        both = pyarrow.concat_tables([table, pyarrow.Table.from_pylist(alone, schema=schema)])
        order = np.concatenate([places[np.array(frames, np.int64)], apart])
        table = both.take(np.argsort(order)).combine_chunks()
    return table_bytes(table)


def _table(
    done: Done, frames: Int64[np.ndarray, " rows"], ids: Sequence[str | None], infos: Sequence[str | None], schema: Any
) -> Any:
    """The table of some frames, whose rows are side by side."""
    import pyarrow

    block, answers, rows = done.block, done.answers, len(frames)
    offsets = bounds_of(block.frames.counts[frames])
    atoms = block.frames.rows_of(frames)

    def lists(values: Any, bounds: Any, **how: Any) -> Any:
        return pyarrow.ListArray.from_arrays(pyarrow.array(bounds, pyarrow.int32()), values, **how)

    def triples(values: np.ndarray) -> Any:
        return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.ravel()), 3)

    has = ~np.isnan(answers.stress[frames, 0])
    made = {
        "index": block.first + block.places[frames],
        "id": pyarrow.array(ids, pyarrow.string()),
        "numbers": lists(pyarrow.array(block.frames.numbers[atoms].astype(np.int32)), offsets),
        "positions": lists(triples(block.frames.positions[atoms]), offsets),
        "cell": lists(triples(block.frames.cells[frames]), np.arange(rows + 1) * 3),
        "pbc": lists(pyarrow.array(block.frames.pbc[frames].ravel()), np.arange(rows + 1) * 3),
        "energy": answers.energy[frames],
        "forces": lists(triples(answers.forces[atoms]), offsets),
        "stress": lists(
            pyarrow.array(answers.stress[frames][has].ravel()),
            bounds_of(6 * has),
            mask=pyarrow.array(~has),
        ),
        "info": pyarrow.array(infos, pyarrow.string()),
    }
    for name, values in answers.uncertainties.items():
        if name in OF_ATOMS:
            made[name] = lists(pyarrow.array(values[atoms]), offsets)
        else:
            made[name] = values[frames] if OF_STRUCTURE[name] == "float" else values[frames].tolist()
    if done.flags is not None:
        made[FLAG] = done.flags[frames]
    nothing = [None] * rows
    arrays = [
        value if isinstance(value := made.get(part.name, nothing), pyarrow.Array) else pyarrow.array(value, part.type)
        for part in schema
    ]
    return pyarrow.Table.from_arrays(arrays, schema=schema)
