"""Every structure of a file, evaluated or relaxed, resumable after a kill, on one machine or on many."""

from painn_deploy.runtime.screening.relaxation import Relaxation, relax
from painn_deploy.runtime.screening.run import Job, Part, Screener, Settings, Summary, screen

__all__ = ["Job", "Part", "Relaxation", "Screener", "Settings", "Summary", "relax", "screen"]
