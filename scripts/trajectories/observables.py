"""What trajectories of a molecule are compared by: distances between atoms, and the frequencies of vibrations."""

import numpy as np
from ase import units
from jaxtyping import Float, Float64

__all__ = ["DISTANCES", "FARTHEST", "HIGHEST", "apart", "distances", "spectra", "wavenumbers"]

FARTHEST, DISTANCES = 10.0, 500
"""Å, and bins from 0 to there; a pair that is farther apart is counted in the last."""

HIGHEST = 4500.0
"""1/cm; nothing in a molecule vibrates faster."""

LIGHT = units._c * 1e2 * 1e-15
"""cm/fs"""


def distances(positions: Float64[np.ndarray, "replicas atoms 3"]) -> Float64[np.ndarray, "replicas bins"]:
    """Counts of the distances between all pairs of atoms of each replica.

    Args:
        positions: Å.
    """
    first, second = np.triu_indices(positions.shape[1], 1)
    lengths = np.linalg.norm(positions[:, first] - positions[:, second], axis=2)
    bins = np.minimum((lengths * (DISTANCES / FARTHEST)).astype(int), DISTANCES - 1)
    bins += DISTANCES * np.arange(len(positions))[:, None]
    counts = np.bincount(bins.ravel(), minlength=DISTANCES * len(positions))
    return counts.reshape(-1, DISTANCES).astype(float)


def wavenumbers(frames: int, interval: float) -> Float64[np.ndarray, " frequencies"]:
    """Frequencies of `spectra`, 1/cm.

    Args:
        frames: of a trajectory.
        interval: fs between two.
    """
    found = np.fft.rfftfreq(frames, interval) / LIGHT
    kept: np.ndarray = found[found <= HIGHEST]
    return kept


def spectra(
    velocities: Float[np.ndarray, "frames replicas atoms 3"],
    masses: Float64[np.ndarray, " atoms"],
    interval: float,
) -> Float64[np.ndarray, "replicas frequencies"]:
    """Vibrational density of states of each replica, of any scale: the mass-weighted power spectrum of the velocities.

    It is the Fourier transform of their autocorrelation (Wiener and Khinchin; Dickey and Paskin 1969,
    doi:10.1103/PhysRev.188.1407). A Hann window keeps a strong line from leaking into its surroundings.

    Args:
        velocities: of any unit; at equal times.
        masses: u.
        interval: fs between two frames.
    """
    window = np.hanning(len(velocities) + 1)[:-1]
    transformed = np.fft.rfft(velocities * window[:, None, None, None], axis=0)
    power = np.einsum("frac,a->rf", np.square(np.abs(transformed)), masses)
    found: np.ndarray = power[:, : len(wavenumbers(len(velocities), interval))]
    return found


def apart(one: Float[np.ndarray, " bins"], other: Float[np.ndarray, " bins"]) -> float:
    """The share of one distribution that is elsewhere in another, half of ∫|p - q|: 0 if they are equal, 1 if disjoint.

    Args:
        one: of any scale.
        other: in the same bins.
    """
    return float(np.abs(one / one.sum() - other / other.sum()).sum() / 2)
