"""Replicas of one molecule at several temperatures, together, with TorchSim's Langevin integrator on an engine.

    python scripts/examples/run_replicas.py BUNDLE --temperatures 200,300,400,500 --replicas 8

prints the temperature that each group had, which the thermostat sets, and the steps a second of all.
"""

import time
from pathlib import Path

import torch
import torch_sim
from ase import Atoms
from ase.build import molecule
from torch_sim.units import MetalUnits

from painn_deploy.export.errors import StructureError
from painn_deploy.runtime.torchsim import PaiNNModel
from painn_deploy.scripts.commands.entry import run_command

__all__ = ["run_replicas"]


def run_replicas(
    model: PaiNNModel,
    atoms: Atoms,
    temperatures: list[float],
    *,
    replicas: int,
    steps: int,
    timestep: float = 0.5,
    friction: float = 10.0,
    seed: int = 0,
) -> torch.Tensor:
    """Mean temperature, K, of each group over the second half of a run.

    Args:
        model: an engine.
        atoms: where every replica begins.
        temperatures: K, one for each group.
        replicas: of a group.
        steps: of all.
        timestep: fs.
        friction: 1/ps.
        seed: of velocities and noise.
    """
    torch.manual_seed(seed)
    kelvin = torch.tensor(temperatures, dtype=torch.float64).repeat_interleave(replicas)
    start = torch_sim.io.atoms_to_state([atoms] * len(kelvin), model.device, model.dtype)
    begin, step = torch_sim.integrators.nvt_langevin(
        model,
        dt=torch.tensor(1e-3 * timestep * float(MetalUnits.time), dtype=torch.float64),
        kT=kelvin * float(MetalUnits.temperature),
        gamma=torch.tensor(friction / float(MetalUnits.time), dtype=torch.float64),
        seed=seed,
    )
    state, seen = begin(start), []
    for count in range(steps):
        state = step(state)
        if count >= steps // 2:
            seen.append(
                torch_sim.quantities.calc_temperature(
                    masses=state.masses, momenta=state.momenta, system_idx=state.system_idx
                )
            )
    return torch.stack(seen).mean(0).reshape(len(temperatures), replicas).mean(1)


def main(
    bundle: Path, temperatures: str = "200,300,400,500", replicas: int = 8, steps: int = 2000, name: str = "CH3CH2OH"
) -> None:
    """Run, and print a row for each temperature.

    Args:
        bundle: a folder NAME.engine.
        temperatures: K, separated by commas.
        replicas: at each temperature.
        steps: of 0.5 fs.
        name: of a molecule of ASE's G2 set.
    """
    try:
        kelvin = [float(word) for word in temperatures.split(",")]
        atoms = molecule(name)
    except (ValueError, KeyError) as error:
        raise StructureError(f"Not temperatures such as 200,300, or no molecule of the G2 set: {error}.") from error
    atoms.set_initial_magnetic_moments(None)
    model = PaiNNModel(bundle)
    started = time.perf_counter()
    means = run_replicas(model, atoms, kelvin, replicas=replicas, steps=steps)
    spent = time.perf_counter() - started
    print(f"| thermostat (K) | mean of {replicas} replicas (K) |\n|---|---|")
    for asked, mean in zip(kelvin, means.tolist(), strict=True):
        print(f"| {asked:.0f} | {mean:.0f} |")
    count = replicas * len(kelvin)
    print(f"\n{count} replicas, {steps} steps: {spent:.1f} s, {count * steps / spent:.0f} replica steps a second")


if __name__ == "__main__":
    run_command(main)
