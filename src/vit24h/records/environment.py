"""What a run ran on: machine, driver, packages, code, image. Must not know torch; the engine hands in the GPU."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from vit24h import __version__, paths

_PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "pillow", "simplejpeg", "triton", "safetensors")


def capture_environment(
    *, gpu: Mapping[str, Any] | None, dataset: Mapping[str, Any], seed: int, processes: int = 1
) -> dict[str, Any]:
    """The content of `environment.json`.

    Args:
        gpu: name, memory_gib, cuda, capability, as torch sees it; None on a CPU. The driver's version is added here.
        dataset: name of its folder, fingerprint, counts; no path, because records are published.
    """
    return {
        "vit24h": __version__,
        "git": _git(),
        "code": {"fingerprint": code_fingerprint()},
        "image": os.environ.get("VIT24H_IMAGE") or None,  # set when the container is built
        "gpu": {**gpu, "driver": driver_version()} if gpu else None,
        "cpu": {"model": _cpu_model(), "cores": len(os.sched_getaffinity(0))},
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "processes": processes,
        "dataset": dict(dataset),
        "seed": seed,
    }


@functools.cache
def code_fingerprint() -> str:
    """SHA-256 over names and contents of the package's source files, in order of name, hexadecimal.

    The commit alone does not tell what ran: files may differ from it. Left out are `report/`, which only reads records,
    and `configs/`, whose outcome is the resolved configuration, with a fingerprint of its own.
    """
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py"), key=lambda path: path.relative_to(package).as_posix()):
        name = path.relative_to(package).as_posix()
        if not name.startswith("report/"):
            content = path.read_bytes()
            digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def driver_version() -> str | None:
    """Of NVIDIA's driver, such as 580.65.06; None where there is none."""
    text = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return text.splitlines()[0] if text else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _git() -> dict[str, Any] | None:
    """Commit of the checkout and whether it differs from it; None outside one, unless the image was built with it."""
    root = str(paths.project_root())
    commit = _output("git", "-C", root, "rev-parse", "HEAD")
    if commit is None:
        built_from, _, changed = os.environ.get("VIT24H_COMMIT", "").partition("-")  # or 01ab...-dirty: setup/docker.sh
        return {"commit": built_from, "dirty": bool(changed)} if built_from else None
    return {"commit": commit, "dirty": bool(_output("git", "-C", root, "status", "--porcelain"))}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
