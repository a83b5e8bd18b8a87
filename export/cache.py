"""Where what was made or measured once is kept for this user."""

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """$PAINN_DEPLOY_CACHE, or painn-deploy in the user's cache folder; it need not exist."""
    if chosen := os.environ.get("PAINN_DEPLOY_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "painn-deploy"
