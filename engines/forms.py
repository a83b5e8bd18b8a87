"""Forms of the graph that torch's compiler is given, and how it compiles them: data, so that a machine can be asked.

A form is written as words joined by `+`, with sizes to tune for behind an `@`: `sums+paired+unchecked@1024,16`.

| word | meaning |
|---|---|
| `plain` | the graph as a bundle holds it |
| `sums` | products of two tensors, thousands of small matrices, as a multiplication and a sum |
| `products` | the same only where an operand was multiplied just before |
| `paired` | filters once a pair of slots, not once a slot |
| `side` | products of one tensor with several weights side by side, as one product |
| `messages` | on a GPU, what an interaction sums over neighbours in one kernel of Triton, and its adjoint in another |
| `split` | the filters' products in those kernels as three of TF32, which together are about as exact as one of FP32 |
| `dots` | products with weights as a multiplication and a sum, too: for a few atoms |
| `frozen` | weights compiled in, laid out as the product likes them |
| `inline` | on a CPU, products compiled with the rest in place of calls to oneDNN |
| `tuned` | on a GPU, each product's kernel chosen by timing candidates |
| `descent` | on a GPU, block sizes of fused kernels searched for by timing |
| `unchecked` | on a GPU, no assertion at each gathered index; the session checks indices before it uploads them |

Every form gives the same energies and forces, up to the order of sums.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from painn_deploy.export.errors import EngineError, EngineUnavailableError

if TYPE_CHECKING:
    import onnx

__all__ = ["CPU_FORMS", "GPU_FORMS", "WORDS", "Form", "Package", "Plan", "plans_for", "serving"]

WORDS = (
    "plain", "sums", "products", "messages", "split", "paired", "side", "dots", "frozen", "inline", "tuned", "descent",
    "unchecked",
)  # fmt: skip

INLINE_THREADS = 2
"""Threads that an inline product is compiled for; the number that it runs on does not change its bits."""


@dataclass(frozen=True)
class Form:
    """One form of the graph, and what its compilation tunes for.

    Attributes:
        words: of `WORDS`.
        atoms: rows of the matrix that block sizes are chosen for; any number runs.
        slots: columns of that matrix; likewise.
    """

    words: tuple[str, ...] = ()
    atoms: int = 72
    slots: int = 8

    @classmethod
    def parse(cls, text: str) -> "Form":
        """A form from how it is written.

        Raises:
            EngineError: it holds a word or a size that is none.
        """
        written, _, sizes = text.partition("@")
        words = tuple(word for word in written.split("+") if word != "plain")
        if not written or not set(words) <= set(WORDS) or len(set(words)) < len(words):
            raise EngineError(
                f"{text!r} is no form of the graph. A form is made of {', '.join(WORDS)}, each once and joined by '+'."
            )
        if "split" in words and "messages" not in words:
            raise EngineError(f"{text!r}: 'split' is about the products inside of 'messages', which is missing.")
        if not sizes:
            return cls(words)
        try:
            atoms, slots = (int(size) for size in sizes.split(","))
        except ValueError:
            atoms = slots = 0
        if min(atoms, slots) < 2:
            raise EngineError(f"{text!r}: behind '@' stand atoms and slots to tune for, 2 or more each, such as @72,8.")
        return cls(words, atoms, slots)

    def __str__(self) -> str:
        return f"{'+'.join(self.words) or 'plain'}@{self.atoms},{self.slots}"

    def products_in_kernels(self, *, tf32: bool = False) -> str:
        """How the filters' products inside of messages are computed, in Triton's words.

        Args:
            tf32: let products round their operands to ten bits.
        """
        return "tf32" if tf32 else "tf32x3" if "split" in self.words else "ieee"

    @property
    def paired(self) -> bool:
        """Whether the graph takes `PAIR_INPUTS` as well."""
        return "paired" in self.words

    def lowered(self, model: "onnx.ModelProto") -> "onnx.ModelProto":
        """A copy of the graph in this form.

        Args:
            model: as a bundle holds it.

        Raises:
            EngineError: the form wants messages in one pass, and the graph has none that are known.
        """
        from painn_deploy.export.graph.edit import EditableGraph
        from painn_deploy.export.graph.lowering import (
            filters_once_a_pair,
            products_side_by_side,
            sums_for_batched_products,
            sums_for_products,
        )
        from painn_deploy.export.graph.messages import messages_in_one_pass

        graph = EditableGraph(model)
        if "messages" in self.words and not messages_in_one_pass(graph):
            raise EngineError(
                f"The form {self} wants messages in one pass, and this graph holds none that are known: take another."
            )
        if {"sums", "products"}.intersection(self.words):
            sums_for_batched_products(graph, of_products="sums" not in self.words, mixing=True)
        if self.paired:
            filters_once_a_pair(graph)
        if "side" in self.words:
            products_side_by_side(graph)
        if "dots" in self.words:
            sums_for_products(graph)
        return graph.model()

    def settings(self, kind: str, *, tf32: bool = False) -> dict[str, Any]:
        """Settings of torch's compiler.

        Args:
            kind: `cpu` or `cuda`.
            tf32: whether FP32 products may round their operands to ten bits.
        """
        found: dict[str, Any] = {"freezing": True} if "frozen" in self.words else {}
        if kind == "cpu":
            if "inline" in self.words:
                found |= {"max_autotune": True, "max_autotune_gemm_backends": "CPP", "cpp.threads": INLINE_THREADS}
            return found
        if "tuned" in self.words:
            # torch's own kernels of Triton drop the digits that TF32 has not, where cuBLAS rounds them
            found |= {"max_autotune": True, "max_autotune_gemm_backends": "ATEN" if tf32 else "ATEN,TRITON"}
        if "descent" in self.words:
            found["coordinate_descent_tuning"] = True
        return found | ({"assert_indirect_indexing": False} if "unchecked" in self.words else {})


@dataclass(frozen=True)
class Plan:
    """One package of an engine.

    Attributes:
        form: that it is compiled in.
        most_atoms: rows up to which it is the one that runs; None for all that no smaller package took.
        most_cells: atoms x slots up to which it is; likewise.
    """

    form: Form
    most_atoms: int | None = None
    most_cells: int | None = None

    def serves(self, atoms: int, slots: int) -> bool:
        """Whether it runs a matrix of this size, if no package before it does.

        Args:
            atoms: rows.
            slots: columns.
        """
        return (self.most_atoms is None or atoms <= self.most_atoms) and (
            self.most_cells is None or atoms * slots <= self.most_cells
        )

    def __str__(self) -> str:
        limits = [f"up to {self.most_atoms} atoms"] if self.most_atoms is not None else []
        limits += [f"up to {self.most_cells} atoms x slots"] if self.most_cells is not None else []
        return f"{self.form} for {' and '.join(limits) or 'all other sizes'}"

    def as_dict(self) -> dict[str, Any]:
        """The plan in JSON types."""
        return {"form": str(self.form), "most_atoms": self.most_atoms, "most_cells": self.most_cells}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Plan":
        """A plan from JSON types.

        Raises:
            EngineError: the form is none.
            KeyError, TypeError, AttributeError: the values are no plan's.
        """
        limits = values["most_atoms"], values["most_cells"]
        if wrong := [limit for limit in limits if limit is not None and type(limit) is not int]:
            raise TypeError(f"{wrong[0]!r} is no number of atoms")
        return cls(Form.parse(values["form"]), *limits)


@runtime_checkable
class Package(Protocol):
    """Anything that stands for one package of an engine."""

    @property
    def plan(self) -> Plan:
        """Form of the graph, and the sizes that it is for."""


P = TypeVar("P", bound=Package)


def serving(packages: Sequence[P], atoms: int, slots: int) -> P:
    """The package that runs a matrix.

    Args:
        packages: the one for the smallest matrices first; the last runs whatever none before it serves.
        atoms: rows.
        slots: columns.
    """
    return next((package for package in packages if package.plan.serves(atoms, slots)), packages[-1])


CPU_FORMS = {
    "small.pt2": Plan(Form.parse("sums+paired+side+frozen+inline"), most_atoms=32, most_cells=640),
    "large.pt2": Plan(Form.parse("sums+paired+frozen")),
}
"""Packages of an engine on a CPU, the one for the smallest matrices first. oneDNN is faster for a batch; for a molecule
each of its products takes longer to call than to compute."""

GPU_FORMS = {
    "tiny.pt2": Plan(Form.parse("sums+paired+side+dots+unchecked@9,8"), most_atoms=48, most_cells=768),
    "small.pt2": Plan(Form.parse("sums+paired+side+unchecked@9216,8"), most_cells=16_384),
    "large.pt2": Plan(Form.parse("sums+paired+unchecked@4096,16")),
}
"""The same on a GPU, by times on an H100 (docs/performance.md). One ethanol takes 0.16 ms in the first form and 1.03 in
the second, for which cuBLAS chooses a kernel that is far too large; 64 take 0.37 ms in the second and 0.42 in the
third; 1,536 atoms of water take 1.43 ms in the second and 1.36 in the third."""


DOUBLE_FORMS = {"large.pt2": Plan(Form.parse("sums+paired+frozen"))}
"""The same for a graph in double precision, of which torch's compiler cannot write products `inline`."""

INT8_FORMS = {
    "small.pt2": Plan(Form.parse("sums+paired+side+frozen"), most_atoms=128),
    "large.pt2": Plan(Form.parse("sums+paired+frozen")),
}
"""The same for a graph with products of 8-bit integers, of which torch's compiler can write none `inline`."""


def plans_for(kind: str, form: str, precision: str = "fp32") -> dict[str, Plan]:
    """Packages by file name, the one for the smallest matrices first.

    Args:
        kind: `cpu` or `cuda`.
        form: that all sizes are to run in; empty for the choice of this version.
        precision: of the graph.

    Raises:
        EngineError: the form is none, or none for this precision.
        EngineUnavailableError: it is for a GPU, and this is a CPU.
    """
    on_cpu_alone = {"fp64": DOUBLE_FORMS, "int8": INT8_FORMS}.get(precision)
    chosen = on_cpu_alone or (CPU_FORMS if kind == "cpu" else GPU_FORMS)
    plans = {"large.pt2": Plan(Form.parse(form))} if form else dict(chosen)
    if kind == "cpu" and any("messages" in plan.form.words for plan in plans.values()):
        raise EngineUnavailableError(
            f"The form {form} is for a GPU: its messages are kernels of Triton. Take another form, or --device cuda."
        )
    if on_cpu_alone and (kind != "cpu" or any("inline" in plan.form.words for plan in plans.values())):
        raise EngineError(
            f"There is no engine in {precision} on {kind} of the form {form or 'of this version'}: torch's compiler "
            f"has none `inline`, and {precision} runs on the CPU alone."
        )
    return plans
