"""Writing files so that a kill or a power cut leaves the old content or the new. Must not know what is in them."""

from __future__ import annotations

import os
from pathlib import Path

WRITING = ".writing"
"""How the name of a file ends while its content is on the way: what a kill leaves, and whoever comes next removes."""


def replace_file(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Write beside, sync, rename: whoever reads `path` sees the old content or the new, never a part.

    Raises:
        OSError: it cannot be written; the old content is intact.
    """
    beside = path.with_name(f".{path.name}{WRITING}")
    with beside.open("wb") as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    beside.replace(path)
    if sync:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
