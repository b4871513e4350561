"""The part of `vit24h verify` that needs the weights and the images: evaluate them again, and compare with the record.

Must not know training, nor the rules that need the record alone.
"""

from __future__ import annotations

from pathlib import Path

from vit24h.data import open_dataset
from vit24h.engine.evaluate_run import evaluate_run
from vit24h.errors import UserError
from vit24h.records.fields import Fields, UnfitError
from vit24h.records.reader import read_json
from vit24h.records.verify import Finding

# Another GPU, driver or precision rounds otherwise, and moves images that the model is undecided about: some ten of
# ImageNet's 50,000, between fp16 on a GPU and fp32 on a CPU.
TOLERANCE = 0.1  # percentage points, or one image where that is more


def reevaluate(run_dir: Path, data: Path) -> list[Finding]:
    """Findings on the dataset in `data` and on the accuracy of `model.safetensors` on its validation images."""
    return [_dataset(run_dir, data), _accuracy(run_dir, data)]


def _dataset(run_dir: Path, data: Path) -> Finding:
    rule = "dataset here"
    try:
        recorded = _recorded_dataset(run_dir)
        fingerprint = recorded.sha256("fingerprint")
        found, packed_from = open_dataset(data).fingerprint, _packed_from(recorded)
    except (UnfitError, UserError) as error:
        return Finding(rule, "not checkable", str(error))
    if found == packed_from:
        return Finding(rule, "ok", f"the folder that the run's images were packed from: fingerprint {found[:12]}")
    if found != fingerprint:
        reason = (
            f"fingerprint {found[:12]}, the record's is {fingerprint[:12]}: other names, sizes or classes of images"
        )
        return Finding(rule, "broken", reason)
    return Finding(rule, "ok", f"the images that the run was trained on, by name and size: fingerprint {found[:12]}")


def _accuracy(run_dir: Path, data: Path) -> Finding:
    rule = "re-evaluation"
    try:
        recorded = Fields(read_json(run_dir / "result.json") or {}, "result.json").number("top1", high=100)
        found = evaluate_run(run_dir, data=data)
        unpacked = open_dataset(data).fingerprint == _packed_from(_recorded_dataset(run_dir))
    except (UnfitError, UserError) as error:
        return Finding(rule, "not checkable", str(error))
    allowed = max(TOLERANCE, 100 / found["images"])
    told = f"top-1 {found['top1']:.3f} % on {found['images']:,} images, the record says {recorded:.3f} %"
    if unpacked:
        # The run was evaluated on packed pictures, which are less than the folder's: they may have cost it accuracy.
        if recorded - found["top1"] > allowed + 1e-9:
            return Finding(rule, "broken", f"{told} of the packed ones: more than {allowed:.3g} points too much")
        return Finding(rule, "ok", f"{told} of the packed ones (at most {allowed:.3g} points more than here)")
    if abs(found["top1"] - recorded) > allowed + 1e-9:
        return Finding(rule, "broken", f"{told}: more than {allowed:.3g} points apart")
    return Finding(rule, "ok", f"{told} (within {allowed:.3g} points)")


def _recorded_dataset(run_dir: Path) -> Fields:
    return Fields(read_json(run_dir / "environment.json") or {}, "environment.json").section("dataset")


def _packed_from(recorded: Fields) -> str | None:
    """Fingerprint of the folder that a run's images were packed from; None where they were not packed."""
    return None if recorded.get("packing") is None else recorded.section("packing").sha256("source_fingerprint")
