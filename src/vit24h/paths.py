"""Where things lie: the project's folders, and the two places it writes to. Must not know what is in them."""

from __future__ import annotations

import os
from pathlib import Path


def project_root() -> Path:
    """The checkout: the package is always installed in place (editable), beside `configs/` and `paper_figures/`."""
    return Path(__file__).resolve().parents[2]


def configs() -> Path:
    return project_root() / "configs"


def notebooks() -> Path:
    return project_root() / "paper_figures"


def runs() -> Path:
    """Where suites write: `VIT24H_RUNS`, or `runs/` in the project."""
    return Path(os.environ.get("VIT24H_RUNS") or project_root() / "runs")


def results() -> Path:
    """Committed run records, one folder a suite."""
    return project_root() / "results"


def image_cache() -> Path:
    """Where drawn images are kept: `VIT24H_CACHE`, or `.cache/` in the project."""
    return Path(os.environ.get("VIT24H_CACHE") or project_root() / ".cache")
