"""A run folder holds one run: whether the configuration that is asked for is the one it was begun with.

Must not know: torch, the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit24h.config import Config
from vit24h.errors import UserError
from vit24h.records.fields import same, shown
from vit24h.records.reader import read_config


def require_same_config(config: Config, run_dir: Path) -> None:
    """Refuse another configuration's run folder, naming what differs; one that holds no run yet fits any.

    What changes no result may differ: `runtime`, and where the dataset lies (its fingerprint is compared instead, and
    published records do not say it).

    Raises:
        UserError: the folder holds a run of another configuration, or a config.yaml that cannot be read.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        return
    theirs, ours = read_config(path), config.to_dict()
    for side in (theirs, ours):
        side.pop("runtime", None)
        if isinstance(data := side.get("data"), dict):
            data.pop("path", None)
    if differing := _differences(theirs, ours):
        told = "; ".join(differing[:3]) + (" ..." if differing[3:] else "")
        raise UserError(
            f"{run_dir}: holds a run of another configuration ({told}): choose another folder (--run-dir, or --name "
            "for a suite), or remove that one"
        )


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = "") -> list[str]:
    """'budget.hours 0.1 there, 0.17 here', key by key; 'missing': another version's, without that key."""
    found = []
    for key in dict.fromkeys([*theirs, *ours]):
        if key in theirs and key in ours:
            there, here = theirs[key], ours[key]
            if isinstance(there, Mapping) and isinstance(here, Mapping):
                found.extend(_differences(there, here, f"{prefix}{key}."))
                continue
            if same(there, here):
                continue
        there, here = (shown(side[key]) if key in side else "missing" for side in (theirs, ours))
        found.append(f"{prefix}{key} {there} there, {here} here")
    return found
