"""Checkpoints: written beside and renamed into place, under a name that holds their checksum; the last two are kept.

Must not know what is in the state. Files are read back with `weights_only`: nothing in them is executed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vit24h.files import WRITING, sync_folder

_KEPT = 2
_NAME = re.compile(r"step-(\d{9})-([0-9a-f]{16})\.pt")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Save `state` (tensors, numbers, text, and dicts and lists of these) as the checkpoint of `step`.

    A kill at any moment leaves either the old checkpoints or the old ones and the new one.

    Raises:
        OSError: the disk is full or gone; what was there before is intact.
    """
    beside = folder / f"{step:09d}{WRITING}"
    try:
        torch.save(state, beside)
        checksum = _checksum(beside)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        final = beside.replace(folder / f"step-{step:09d}-{checksum}.pt")
        sync_folder(folder)
    except RuntimeError as error:  # torch's writer reports a full disk as one
        raise OSError(f"writing {beside.name} failed: {str(error).splitlines()[0]}") from error
    finally:
        beside.unlink(missing_ok=True)
    for old in _newest_first(folder)[_KEPT:]:
        old.unlink(missing_ok=True)
    return final


def load_newest_checkpoint(
    folder: Path, device: torch.device, *, damaged: Callable[[Path, str], None]
) -> dict[str, Any] | None:
    """The state of the newest checkpoint that is whole, or None if there is none.

    Args:
        damaged: called with each newer checkpoint that had to be passed over, and why.
    """
    for leftover in folder.glob(f"*{WRITING}"):
        if leftover.is_file():
            leftover.unlink(missing_ok=True)
    for path in _newest_first(folder):
        checksum = _NAME.fullmatch(path.name).group(2)
        if (found := _checksum(path)) != checksum:
            damaged(path, f"checksum {found}, expected {checksum}")
            continue
        try:
            state = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # whatever torch's readers raise over bytes that it did not write
            damaged(path, f"no checkpoint of this program, though its checksum fits: {type(error).__name__}")
            continue
        if isinstance(state, dict):
            return state
        damaged(path, f"no checkpoint of this program, though its checksum fits: it holds a {type(state).__name__}")
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_file()), reverse=True)


def _checksum(path: Path) -> str:
    """The first 64 bits of SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
