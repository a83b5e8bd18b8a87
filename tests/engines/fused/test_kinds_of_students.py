"""The fused kernel of students of every kind that it computes, and those that it refuses."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from painn_deploy.engines.fused import host
from painn_deploy.engines.fused.gpu import FusedExecutor
from painn_deploy.engines.fused.host import FLAGS, compiled_libraries, load
from painn_deploy.engines.fused.plan import Plan
from painn_deploy.engines.fused.weights import pack
from painn_deploy.engines.gpu.device_positions import compile_kernel
from painn_deploy.engines.gpu.session import GpuSession
from painn_deploy.export.errors import EngineError
from painn_deploy.export.fields import GraphOutputs, outputs_of
from painn_deploy.export.model.aggregation import PLAIN
from painn_deploy.export.model.committee import Committee
from painn_deploy.export.model.distiller import Distiller
from painn_deploy.export.model.force_head import autograd_forces, tensors
from painn_deploy.export.model.painn import BesselBasis, GaussianBasis, PaiNN
from painn_deploy.export.model.repulsion import ZBLRepulsion
from painn_deploy.export.model.student import Configuration, Student
from painn_deploy.runtime.matrix import graph_inputs
from tests import students
from tests.engines.emulated_gpu import EmulatedCuda

from .host_kernel import loaded
from .molecules import INFO, check, crowd, made, matrix, opened, same_bits, variant


def nuclei(kind: str, end: float, start: float | None = None) -> ZBLRepulsion:
    """What repels nuclei, of all elements that the students here know."""
    made = ZBLRepulsion(10, 3, kind, end, start)
    made.coefficients[:] = torch.tensor([0.2, 0.5, 0.3])
    made.exponents[:] = torch.tensor([3.2, 0.9, 0.4])
    made.radii[:] = 2.0 * torch.arange(10) ** 0.23
    made.strength[:] = 14.4
    return made


def bases(*kinds: type[torch.nn.Module]) -> torch.nn.ModuleList:
    """A radial basis of five functions for each interaction, none like another."""
    at = torch.arange(1.0, 6.0)
    each = [(at * (1 + 0.2 * n), torch.ones(5)) for n in range(len(kinds))]
    return torch.nn.ModuleList(
        kind(*numbers) if kind is GaussianBasis else kind(numbers[0]) for kind, numbers in zip(kinds, each, strict=True)
    )


def squeezed() -> list[Atoms]:
    """Molecules, one of which is so small that nuclei repel."""
    batch = [students.perturbed(molecule(name), 3) for name in ("CH3CH2OH", "H2O", "CH4")]
    batch[-1].positions *= 0.7
    return batch


def repelled(student: PaiNN, batch: list[Atoms]) -> np.ndarray:
    """What of each atom's energy is the repulsion, eV."""
    inputs = graph_inputs(batch, student.configuration.cutoff, np.float64)
    numbers, vectors, neighbours, _, mask, _ = tensors(inputs, torch.float64)
    apart = torch.where(mask > 0, vectors.norm(dim=-1), 1.0)
    assert student.repulsion is not None
    return student.repulsion(apart, mask, numbers, neighbours, PLAIN).numpy()


@pytest.mark.parametrize(
    ("configuration", "arguments"),
    [
        (variant(), {}),
        (variant(num_interactions=3), {"basis": bases(GaussianBasis, GaussianBasis, GaussianBasis)}),
        (variant(), {"basis": bases(BesselBasis, BesselBasis), "shared_filters": True}),
        (variant(num_interactions=1), {}),
        (variant(num_interactions=4, activation="shifted_softplus"), {}),
        (variant(epsilon=0.0), {"basis": BesselBasis(torch.arange(1, 6) * torch.pi / 4.0), "shared_filters": True}),
        (variant(hidden_dim=160, num_rbf=8), {"readout": (20,)}),
        (variant(cutoff_fn="mollifier"), {"mixing_bias": True}),
        (variant(cutoff_fn="switch", switch_on=1.5), {}),
        (variant(cutoff_fn="polynomial", cutoff_power=5), {"scaled": True}),
        (variant(cutoff_fn="polynomial", cutoff_power=1), {}),
        (variant(repulsion="none"), {"repulsion": nuclei("none", 4.0)}),
        (variant(repulsion="cosine"), {"repulsion": nuclei("cosine", 2.1), "scaled": True}),
        (
            variant(repulsion="mollifier", cutoff_fn="polynomial", cutoff_power=6),
            {"repulsion": nuclei("mollifier", 3.0)},
        ),
        (variant(repulsion="switch"), {"repulsion": nuclei("switch", 2.5, 0.8)}),
    ],
    ids=[
        "small",
        "a basis each",
        "sines each, shared filters",
        "one interaction",
        "softplus",
        "bessel, shared, no epsilon",
        "wide",
        "mollifier, biased vectors",
        "switch",
        "polynomial, scaled energies",
        "line",
        "repulsion",
        "repulsion that ends early, scaled energies",
        "mollified repulsion, softplus",
        "switched repulsion",
    ],
)
def test_other_students(monkeypatch: pytest.MonkeyPatch, configuration: Configuration, arguments: dict) -> None:
    monkeypatch.setattr(host, "FLAGS", ("-O1", *(flag for flag in FLAGS if flag != "-O3")))
    student = made(configuration, **arguments)
    student.gives_features = True
    library = load({4: compiled_libraries(pack(student))["molecules-4.so"]})
    batch = squeezed()
    with opened(library, student) as session:
        got = session.run(matrix(batch, student))
        check(student, batch, got)
        weights = np.random.default_rng(0).integers(0, 2, len(got.forces)).astype(np.float32)
        check(student, batch, session.run(matrix(batch, student)._replace(weights=weights)), weights)
        monkeypatch.setattr(host, "CACHE", 0)
        assert same_bits(session.run(matrix(batch, student)), got), "row by row"
        (features,) = got.extras.values()
        answer = student.readout[-1]
        bias = answer.bias.numpy()
        if student.energy_scales is not None:
            bias = bias * student.energy_scales.numpy()[matrix(batch, student).atomic_numbers]
        energies = features @ answer.weight[0].numpy() + bias
        if student.repulsion is not None:
            energies += repelled(student, batch)
        np.testing.assert_allclose(energies, got.atomic_energies, rtol=0, atol=2e-6)


def committee() -> Committee:
    members = [made(variant(repulsion="none"), seed, repulsion=nuclei("none", 4.0)) for seed in range(3)]
    for number, member in enumerate(members):
        assert member.repulsion is not None
        member.repulsion.strength *= 1 + 0.1 * number
    return Committee(members, ["a", "b", "c"])


def check_spread(student: Committee, batch: list[Atoms], got: GraphOutputs, weights: np.ndarray | None = None) -> None:
    """Hold means and spreads against each member by itself, in float64."""
    check(student, batch, got, weights)
    inputs = graph_inputs(batch, student.configuration.cutoff, np.float64)
    inputs = inputs if weights is None else inputs._replace(weights=weights.astype(np.float64))
    each = [autograd_forces(member, tensors(inputs, torch.float64)) for member in student.members]
    energies, forces = (np.stack([one[place].numpy() for one in each], -1) for place in (0, 1))
    spread = np.sqrt(forces.var(-1, ddof=1).sum(-1))
    assert np.median(spread[spread > 0]) > 0.01
    np.testing.assert_allclose(got.extras["member_energies"], energies, rtol=5e-7, atol=1e-6)
    np.testing.assert_allclose(got.extras["forces_uncertainty"], spread, rtol=2e-5, atol=2e-5)


def test_a_committee(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "FLAGS", ("-O1", *(flag for flag in FLAGS if flag != "-O3")))
    student, batch, large = committee(), squeezed() * 4, crowd()
    library = load({4: compiled_libraries(pack(student))["molecules-4.so"]})
    with opened(library, student) as session:
        got, of_large = session.run(matrix(batch, student)), session.run(matrix(large, student))
        check_spread(student, batch, got)
        check_spread(student, large, of_large)
        weights = np.random.default_rng(0).integers(0, 2, len(got.forces)).astype(np.float32)
        check_spread(student, batch, session.run(matrix(batch, student)._replace(weights=weights)), weights)
        alone = session.run(matrix(batch[:1], student))
        for name, found in alone.extras.items():
            np.testing.assert_array_equal(found, got.extras[name][: len(batch[0])])
        lonely = session.run(matrix([Atoms("O"), Atoms("H")] * 20, student))
        assert not lonely.extras["forces_uncertainty"].any()
        assert len(set(lonely.extras["member_energies"][0])) == 3
    for cache, threads in ((0, 1), (0, 3), (host.CACHE, 2)):
        monkeypatch.setattr(host, "CACHE", cache)
        with opened(library, student, threads) as session:
            for structures, want in ((batch, got), (large, of_large)):
                again = session.run(matrix(structures, student))
                assert same_bits(again, want)
                assert same_bits(list(again.extras.values()), list(want.extras.values()))


@pytest.mark.parametrize("threads", [1, 5])
def test_a_committee_on_a_gpu(cuda: EmulatedCuda, threads: int) -> None:
    student, batch = committee(), squeezed()
    packed = pack(student)
    plan = Plan(packed, 12, 72, 6, spilled=threads > 1)
    kernels, outputs = loaded(cuda, [plan], threads), outputs_of(student.axes)
    with GpuSession(
        lambda stream, arena: FusedExecutor(packed, kernels, 2, stream, arena, outputs), 0, INFO, species=(1, 6, 8)
    ) as session:
        for _ in range(3):
            check_spread(student, batch, session.run(matrix(batch, student)))
    assert compile_kernel("90", plan.source(), fmad=True)


def test_what_is_not_computed_is_said(base: Student) -> None:
    with pytest.raises(EngineError, match="architecture painn, and this student is distiller"):
        pack(Distiller(Configuration("distiller", 16, 2, 5, 5.0)))
    said = variant(repulsion="cosine")
    unlike = Committee([made(said, repulsion=nuclei("cosine", end)) for end in (2.0, 2.5)], ["a", "b"])
    with pytest.raises(EngineError, match="members differ in weights alone, and these differ in REPULSION_END"):
        pack(unlike)
    refused = {
        "18 features, and no multiple of 4": made(variant(hidden_dim=18)),
        "radial bases of different kinds": made(variant(), basis=bases(GaussianBasis, BesselBasis)),
        "2 hidden layers in its read-out": made(variant(), readout=(8, 8)),
        "a read-out of 52 features, and more than 48": made(variant(), readout=(52,)),
        "a radial table": base.with_radial_table(8, 64),
    }
    for words, student in refused.items():
        with pytest.raises(EngineError, match=words):
            pack(student)


@pytest.mark.parametrize("spilled", [False, True])
def test_a_repulsion_on_a_gpu(cuda: EmulatedCuda, spilled: bool) -> None:
    student = made(variant(repulsion="switch"), repulsion=nuclei("switch", 2.5, 0.8))
    packed, batch = pack(student), squeezed()
    plan = Plan(packed, 12, 72, 6, spilled=spilled)
    bare = pack(made(variant()))
    kernels = loaded(cuda, [plan])
    with GpuSession(
        lambda stream, arena: FusedExecutor(packed, kernels, 3, stream, arena), 0, INFO, species=(1, 6, 8)
    ) as session:
        for _ in range(3):
            check(student, batch, session.run(matrix(batch, student)))
    assert packed.of_pairs(72, 4, 2) - bare.of_pairs(72, 4, 2) == 2 * 72
    assert compile_kernel("90", plan.source(), fmad=True)
