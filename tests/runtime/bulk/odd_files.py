"""Files of ordinary rows with odd ones among them, made from a seed."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from ase import Atoms
from ase.build import molecule

CELL = 'Lattice="9 0 0 0 9 0 0 0 9"'
COMMENTS = [
    *("", "water", "id=a{0}", "id={0}", "id={0}.5", "id=nan", 'note="a b" id=b{0}', 'pbc="F F F" id=c{0}', "a= b=2"),
    *("config_type=bulk energy=-5.0 id=d{0}", "energy=-5", "energy=high", 'dipole="1 2 3"', f'x="" {CELL}', "a =5"),
    *('Lattice="9.0 0.0 0.0 0.0 9.0 0.0 0.0 0.0 9.0" q=0.1', f'{CELL} pbc="T T F"', f"{CELL} pbc=T", "cell=9"),
    *('Lattice="9.5 0 0 0 9.25 0 0 0 1e1" pbc="F F F"', 'Lattice="2.5 0 0 0 9.2 0 0 0 9" pbc="F F F"', "box=big"),
    *('lattice="9 0 0 0 9 0 0 0 9"', "supercell=yes", 't=T f=F n=nan i=inf w="T F" v="1 2 3" u="1.5 2" s="1,2"'),
    *("flag other=1", "a=b=c", "q='single' r={{x}} s=[1,2]", r"esc=a\ b", "screen_error=old relax_steps=5"),
    *("uncertainty_ratio=5", "free_energy=-6 energy=-5", 'virial="1 2 3"', "uid=5", 'stress="1 0 0 0 1 0 0 0 1"'),
    *("_JSON=5", 'j="_JSON [1,2]"', "m=007 n=-0 p=+5 e=1e5 f=1.e5 g=.5 h=5. big=123456789012345678901", "ünï=ö"),
    *('pbc="T T T"', "tab\there", "name.with-dash=5 name2=x,y", 'k="a,b"', 'k="  "', 'k=","', "a=1 a=2 b=3 a=4"),
    *(f'energy=-1.0 stress="1 0 0 0 1 0 0 0 1" {CELL}', 'Lattice="0 0 0 0 0 0 0 0 0"', "x=1_0 y=0x10 z=1e400"),
    *('Lattice="nan 0 0 0 9 0 0 0 9" pbc="F T T"', "index=5 info=x arrays=y numbers=3", f"x={'y' * 5000}"),
    *("charge=1 spin=2.5 smiles=CCO method=b3lyp", "Properties=species:S:1:pos:R:3:tags:I:1", "e=1e-5 f=123456789.125"),
]


def _molecule(r: random.Random) -> Atoms:
    atoms = molecule(r.choice(["H2O", "CH3CH2OH", "CH4", "NH3"]))
    atoms.positions += np.random.default_rng(r.randrange(2**32)).normal(0, 0.03, atoms.positions.shape)
    return atoms


def _spoilt(body: str, r: random.Random) -> str:
    """The lines of atoms, seldom as they should be."""
    ways = [
        lambda: body.replace("H ", "Xx", 1),
        lambda: body.replace("H ", "h ", 1),
        lambda: body.replace("H ", "H1", 1),
        lambda: body.replace("H ", "Au", 1),
        lambda: body.replace("H ", "Hé", 1),
        lambda: body.replace("  0.", "  nan ", 1),
        lambda: body.replace(" 0.", " 0.1 0."),
        lambda: body.replace(" 0.", "\t0."),
        lambda: body.replace(" 0.", " 1_0."),
        lambda: "\n".join(body.split("\n")[:-2]) + "\n",
        lambda: f"{body}H 0 0 0\n",
        lambda: f"{body}\n\n",
        lambda: f"{body}VEC1 9 0 0\nVEC2 0 9 0\nVEC3 0 0 9\n",
        lambda: body.replace("\n", "\r\n"),
    ]
    return r.choice(ways)() if r.random() < 0.2 else body


def odd_frames(path: Path, rows: int, seed: int) -> Path:
    """Extended XYZ; ends in the middle of a line.

    Args:
        path: to write to.
        rows: frames, more or less.
        seed: of everything in it.
    """
    r, frames = random.Random(seed), list[str]()  # noqa: S311  no secret
    for row in range(rows):
        atoms = _molecule(r)
        comment = (r.choice(COMMENTS) if r.random() < 0.7 else "id=z{0}").format(row)
        ends = "   3" if "tags" in comment else "   0.5" if r.random() < 0.05 else ""
        if "Properties" not in comment and r.random() < 0.5:
            forces = r.random() < 0.5
            comment = f"{comment} Properties=species:S:1:pos:R:3{':forces:R:3' * forces}".strip()
            ends = "  1.0 -2.5 1e-3" * forces
        given = zip(atoms.symbols, atoms.positions.tolist(), strict=True)
        body = "".join(f"{name:<2} {x:16.8f} {y:16.8f} {z:16.8f}{ends}\n" for name, (x, y, z) in given)
        frames.append(f"{' ' * (r.random() < 0.05)}{len(atoms)}\n{comment}\n{_spoilt(body, r)}")
    frames += ["garbage\nlines\n", "0\n\n", "5\n", "1\nid=last\nH 0 0 0"]
    path.write_text("".join(frames), newline="\n")
    return path


ODD_VALUES: list[dict[str, Any]] = [
    *({"numbers": None}, {"positions": None}, {"numbers": [8, None, 1]}, {"numbers": []}, {"numbers": [79, 1, 1]}),
    *({"positions": [[0.0, 0.0, 0.1]]}, {"positions": [[1.0, 2.0]]}, {"positions": [[None, 1.0, 2.0]]}),
    *({"numbers": [1], "positions": [None]}, {"numbers": [1], "positions": [[float("nan"), 0.0, 0.0]]}),
    *({"numbers": [1, 1], "positions": [[0.0] * 3] * 2}, {"numbers": [-5, 1, 1]}, {"numbers": [1, 1, 2**40]}),
    *({"numbers": [1, 1], "positions": [[0.0, 0.0, 0.0, 0.0, 0.0, 0.7]]}, {"pbc": [True] * 3}, {"pbc": [True]}),
    {"cell": [[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]], "pbc": [True] * 3, "stress": [1.0, 2, 3, 4, 5, 6]},
    {"cell": [[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]], "pbc": [True, None, False]},
    {"cell": [[3.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]]},
    {"cell": [[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]], "pbc": [True] * 3},
    {"cell": [[9.0, None, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]]},
    {"cell": [[float("nan"), 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]], "pbc": [False, True, True]},
    *({"index": 5}, {"index": None}, {"energy": -5.0}, {"energy": float("nan")}, {"stress": [1.0] * 6}),
    *({"forces": [[1.0, 2.0]]}, {"forces": [None, None]}, {"forces": [[1.0] * 3] * 3}, {"screen_error": "of mine"}),
    *({"energy": -5.0, "numbers": [79, 1, 1]}, {"energies_uncertainty": [1.0]}, {"arrays": '{"tags": [1, 2, 3]}'}),
    *({"info": text} for text in ('{"a": 1, "b": [1, 2], "c": null}', '{"a": 1,"b":2.50,"t":"x y"}', '{"a": 1', "[1]")),
    *({"info": text} for text in ('{"energy": 5, "id": "own"}', '{"ü": "\\u00e9", "a": 1, "a": 2}', '{"id": NaN}')),
    {"info": '{"d": {"__ndarray__": [[2], "float64", [1.0, 2.0]]}}'},
    {"info": '{"n": 123456789012345678901234567890, "m": NaN, "i": Infinity}'},
    *({"info": '{"note": "clash"}', "note": "other"}, {"info": '{"__ndarray__": 5}'}, {"note": "é\n"}, {"note": "1 2"}),
    *({"note": "a b", "q": 1.5, "flag": True}, {"q": float("nan")}, {"id": None}, {"id": "ü"}, {"note": "\\"}),
]


def odd_table(path: Path, rows: int, seed: int) -> Path:
    """Parquet with every column that there may be.

    Args:
        path: to write to.
        rows: how many.
        seed: of everything in it.
    """
    r, made = random.Random(seed), list[dict[str, Any]]()  # noqa: S311  no secret
    for row in range(rows):
        atoms = _molecule(r)
        odd = ODD_VALUES[row % len(ODD_VALUES)] if r.random() < 0.6 else {}
        plain = {"id": f"p{row}", "numbers": atoms.numbers.tolist(), "positions": atoms.positions.tolist()}
        made.append({**plain, "index": row, **odd, **({"id": f"ü{row}"} if odd.get("id") else {})})
    texts = {name: pyarrow.string() for name in ("screen_error", "info", "arrays", "note")}
    triples, reals = pyarrow.list_(pyarrow.list_(pyarrow.float64())), pyarrow.list_(pyarrow.float64())
    kinds = {"id": pyarrow.string(), "numbers": pyarrow.list_(pyarrow.int64()), "positions": triples, "cell": triples}
    kinds |= {"pbc": pyarrow.list_(pyarrow.bool_()), "index": pyarrow.int32(), "energy": pyarrow.float64()}
    kinds |= {"forces": triples, "stress": reals, "energies_uncertainty": reals, **texts}
    kinds |= {"q": pyarrow.float64(), "flag": pyarrow.bool_()}
    table = pyarrow.Table.from_pylist(made, schema=pyarrow.schema(list(kinds.items())))
    pyarrow.parquet.write_table(table, path, row_group_size=70)
    return path


def table_of_other_types(path: Path, seed: int, which: int) -> Path:
    """Parquet whose columns have other types than ours.

    Args:
        path: to write to.
        seed: of everything in it.
        which: of the two kinds of file that there are.
    """
    r, lists = random.Random(seed), pyarrow.list_  # noqa: S311  no secret
    given, kinds = list[dict[str, Any]](), dict[str, Any]()
    for row in range(60):
        atoms = molecule("H2O") if which else _molecule(r)
        cell = [[9, 0, 0], [0, 9, 0], [0, 0, 9]]
        flat = atoms.positions.ravel().tolist()
        if which:
            own = {"positions": atoms.positions.tolist(), "cell": cell, "pbc": [1, 0, 1] if row % 3 else [0, 0, 0]}
            own |= {"index": "x" if row % 2 else None, "id": row, "forces": [[1, 2, 3]] * 3, "__ndarray__": row}
            own |= {"info": {"a": row, "b": None if row % 2 else "s"}, "Lattice": json.dumps(row)}
        else:
            own = {
                "positions": flat if row % 9 else flat[:-1],
                "cell": [*cell[0], *cell[1], *cell[2]] if row % 2 else None,
            }
            own |= {"pbc": bool(row % 3) if row % 5 else None, "id": float(row) if row % 4 else float("nan")}
            own |= {"energy": "high" if row % 7 == 0 else None, "when": row}
        given.append({"numbers": atoms.numbers.tolist(), **own})
    if which:
        kinds = {"numbers": lists(pyarrow.int32(), 3), "positions": lists(lists(pyarrow.float64(), 3), 3)}
        kinds |= {"cell": lists(lists(pyarrow.int32())), "pbc": lists(pyarrow.int8()), "index": pyarrow.string()}
        kinds |= {"id": pyarrow.int64(), "forces": lists(lists(pyarrow.int32(), 3)), "__ndarray__": pyarrow.int64()}
        kinds |= {
            "info": pyarrow.struct([("a", pyarrow.int64()), ("b", pyarrow.string())]),
            "Lattice": pyarrow.string(),
        }
    else:
        kinds = {"numbers": lists(pyarrow.uint8()), "positions": pyarrow.large_list(pyarrow.float32())}
        kinds |= {"cell": lists(pyarrow.float64(), 9), "pbc": pyarrow.bool_(), "id": pyarrow.float64()}
        kinds |= {"energy": pyarrow.string(), "when": pyarrow.timestamp("ns")}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(given, schema=pyarrow.schema(list(kinds.items()))), path)
    return path
