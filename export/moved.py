"""Old import paths of modules that moved into sub-packages: each answers with the module that it is now.

A finder at the end of `sys.meta_path` is asked for what nothing else finds, so that it costs other imports nothing.
"""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import MappingProxyType, ModuleType
from typing import Any

__all__ = ["MOVED", "moved_names", "names_of"]

NAMESPACE = "painn_deploy"

MOVED = MappingProxyType(
    {
        "calibration.audit": "calibration.physics.audit",
        "calibration.breakdown": "calibration.accuracy.breakdown",
        "calibration.charts": "calibration.report.charts",
        "calibration.comparison": "calibration.report.comparison",
        "calibration.consistency": "calibration.physics.consistency",
        "calibration.continuity": "calibration.physics.continuity",
        "calibration.motion": "calibration.physics.motion",
        "calibration.parity": "calibration.accuracy.parity",
        "calibration.ranges": "calibration.int8.ranges",
        "calibration.reference": "calibration.accuracy.reference",
        "calibration.reproducibility": "calibration.physics.reproducibility",
        "calibration.resolution": "calibration.physics.resolution",
        "calibration.search": "calibration.int8.search",
        "calibration.selection": "calibration.int8.selection",
        "calibration.subjects": "calibration.physics.subjects",
        "calibration.symmetry": "calibration.physics.symmetry",
        "calibration.tabling": "calibration.accuracy.tabling",
        "calibration.verdicts": "calibration.physics.verdicts",
        "calibration.yardstick": "calibration.int8.yardstick",
        "engines.arena": "engines.gpu.arena",
        "engines.cuda": "engines.gpu.cuda",
        "engines.cuda_toolchain": "engines.gpu.toolchain",
        "engines.device_positions": "engines.gpu.device_positions",
        "engines.driver": "engines.gpu.driver",
        "engines.gpu_executor": "engines.gpu.executor",
        "engines.gpu_lane": "engines.gpu.lane",
        "engines.gpu_session": "engines.gpu.session",
        "engines.inductor.cores": "engines.cores",
        "engines.inductor_compile": "engines.inductor.compile",
        "engines.inductor_gpu": "engines.inductor.gpu",
        "engines.matmul_precision": "engines.inductor.matmul_precision",
        "engines.onnx_torch": "engines.inductor.onnx_torch",
        "engines.onnxruntime_gpu": "engines.onnxruntime.gpu",
        "engines.onnxruntime_library": "engines.onnxruntime.library",
        "engines.pairs": "engines.inductor.pairs",
        "engines.plan": "engines.tensorrt.plan",
        "engines.shared_libraries": "engines.gpu.shared_libraries",
        "engines.tensorrt_builder": "engines.tensorrt.builder",
        "engines.tensorrt_rtx": "engines.tensorrt.rtx",
        "engines.tensorrt_session": "engines.tensorrt.session",
        "export.aggregation": "export.model.aggregation",
        "export.cache": "engines.cache",
        "export.distiller": "export.model.distiller",
        "export.explicit": "export.model.explicit",
        "export.force_head": "export.model.force_head",
        "export.half": "export.graph.half",
        "export.lowering": "export.graph.lowering",
        "export.onnx_graph": "export.graph.onnx_graph",
        "export.onnx_writer": "export.graph.writer",
        "export.operators": "export.graph.operators",
        "export.painn": "export.model.painn",
        "export.products": "export.graph.products",
        "export.radial_table": "export.model.radial_table",
        "export.schnetpack.archive": "export.readers.archive",
        "export.schnetpack.pickles": "export.readers.pickles",
        "export.schnetpack.stand_ins": "export.readers.stand_ins",
        "export.student": "export.model.student",
        "export.translate": "export.graph.translate",
        "runtime.packing": "runtime.grouping",
        "runtime.relaxation": "runtime.screening.relaxation",
        "runtime.sinks": "runtime.screening.sinks",
        "runtime.skin": "runtime.verlet",
        "runtime.sources": "runtime.screening.sources",
        "runtime.timings": "engines.timings",
        "runtime.workers": "runtime.screening.workers",
        "scripts.batches": "scripts.distillation.batches",
        "scripts.benchmarking": "scripts.benchmarks.run",
        "scripts.benchmarks.benchmark_analytical_forces": "scripts.benchmarks.analytical_forces",
        "scripts.benchmarks.benchmark_batched_forces_druglike": "scripts.benchmarks.druglike",
        "scripts.benchmarks.benchmark_batching": "scripts.benchmarks.batching",
        "scripts.benchmarks.benchmark_force_optimizations": "scripts.benchmarks.force_optimizations",
        "scripts.benchmarks.benchmark_inference": "scripts.benchmarks.inference",
        "scripts.benchmarks.benchmarking": "scripts.benchmarks.run",
        "scripts.benchmarks.compare_benchmarks": "scripts.benchmarks.compare",
        "scripts.benchmarks.eager": "scripts.benchmarks.contenders.eager",
        "scripts.benchmarks.force_methods": "scripts.benchmarks.contenders.pytorch",
        "scripts.benchmarks.orb_peer": "scripts.benchmarks.contenders.orb",
        "scripts.benchmarks.schnetpack_candidate": "scripts.benchmarks.contenders.schnetpack_contender",
        "scripts.benchmarks.schnetpack_server": "scripts.benchmarks.contenders.schnetpack_server",
        "scripts.benchmarks.speed_studies": "scripts.benchmarks.conditions",
        "scripts.benchmarks.timing": "calibration.timing",
        "scripts.bundling": "scripts.commands.bundler",
        "scripts.card_studies": "scripts.studies.card_studies",
        "scripts.card_text": "scripts.studies.card_text",
        "scripts.compare_neighbours": "scripts.studies.neighbours",
        "scripts.dataset_molecules": "scripts.distillation.molecules",
        "scripts.dataset_plan": "scripts.distillation.plan",
        "scripts.dataset_structures": "scripts.distillation.structures",
        "scripts.demo": "scripts.commands.demo",
        "scripts.doctor": "scripts.commands.doctor",
        "scripts.dynamics": "scripts.commands.md",
        "scripts.eager": "scripts.benchmarks.contenders.eager",
        "scripts.eager_profile": "scripts.profiling.of_eager",
        "scripts.entry": "scripts.commands.entry",
        "scripts.export_errors": "scripts.commands.inspection",
        "scripts.exporting": "scripts.commands.export",
        "scripts.force_methods": "scripts.benchmarks.contenders.pytorch",
        "scripts.fused_sums": "scripts.distillation.fused_sums",
        "scripts.gpu_builds": "scripts.gpu.builds",
        "scripts.gpu_identity": "scripts.gpu.identity",
        "scripts.gpu_kit_download": "scripts.kit.download",
        "scripts.gpu_kit_fatbin": "scripts.kit.fatbin",
        "scripts.gpu_kit_onnxruntime": "scripts.kit.onnxruntime_wheel",
        "scripts.gpu_kit_portions": "scripts.kit.portions",
        "scripts.gpu_kit_wheels": "scripts.kit.wheels",
        "scripts.gpu_measure": "scripts.gpu.measure",
        "scripts.gpu_plan": "scripts.gpu.plan",
        "scripts.gpu_proofs": "scripts.gpu.proofs",
        "scripts.gpu_record": "scripts.gpu.record",
        "scripts.gpu_stages": "scripts.gpu.stages",
        "scripts.gpu_worker": "scripts.gpu.worker",
        "scripts.graph_costs": "scripts.profiling.costs",
        "scripts.graph_purposes": "scripts.profiling.purposes",
        "scripts.labels": "scripts.distillation.labels",
        "scripts.onnxruntime_profile": "scripts.profiling.of_onnxruntime",
        "scripts.orb_peer": "scripts.benchmarks.contenders.orb",
        "scripts.performance_tables": "scripts.benchmarks.performance_tables",
        "scripts.precision": "scripts.commands.typed_graphs",
        "scripts.profiling.force_computation": "scripts.studies.force_computation",
        "scripts.prove_screening": "scripts.studies.interrupted_screening",
        "scripts.quantities": "scripts.commands.quantities",
        "scripts.relax_molecules": "scripts.examples.relax_molecules",
        "scripts.report": "calibration.report.report",
        "scripts.roofline": "scripts.profiling.roofline",
        "scripts.run_replicas": "scripts.examples.run_replicas",
        "scripts.schnetpack_candidate": "scripts.benchmarks.contenders.schnetpack_contender",
        "scripts.schnetpack_server": "scripts.benchmarks.contenders.schnetpack_server",
        "scripts.screening": "scripts.commands.screen",
        "scripts.speed_studies": "scripts.benchmarks.conditions",
        "scripts.timing": "calibration.timing",
        "scripts.trade": "scripts.studies.trade",
        "scripts.validating": "calibration.report.validation",
        "scripts.validation_tables": "scripts.commands.validate",
    }
)
"""Where each module went, both below `painn_deploy`."""


class _Moved(MetaPathFinder, Loader):
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the protocol's
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        namespace, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if namespace == NAMESPACE and name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        sys.modules[old] = _now(old, f"{NAMESPACE}.{MOVED[old.partition('.')[2]]}")


def names_of(old: str, new: str) -> Callable[[str], Any]:
    """A package's `__getattr__` that answers for the module which had the package's name.

    Args:
        old: full name of the package.
        new: full name of the module.
    """

    def find(name: str) -> Any:
        # `from package import module` asks for the attribute first, and imports the module where there is none
        if name.startswith("__") or find_spec(f"{old}.{name}") is not None:
            raise AttributeError(name)
        return getattr(_now(old, new), name)

    return find


def moved_names(old: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` that answers for names which moved out of it.

    Args:
        old: full name of the module.
        names: full name of the module that each is in now.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        return getattr(_now(f"{old}.{name}", names[name]), name)

    return find


def _now(old: str, new: str) -> ModuleType:
    module = import_module(new)
    warnings.warn(f"{old} is now {new}; import that.", DeprecationWarning, stacklevel=3)
    return module


sys.meta_path.append(_Moved())
