"""Evaluating a finished run's weights again. Must not know training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from vit24h.config import read_config
from vit24h.engine import device as devices
from vit24h.engine import inputs
from vit24h.engine.evaluate import evaluate
from vit24h.errors import UserError, one_line
from vit24h.models import build_model


def evaluate_run(run_dir: Path, *, data: Path | None = None) -> dict[str, Any]:
    """Top-1, top-5 (percent), loss and number of images of `model.safetensors` in a run folder.

    Args:
        data: the dataset's folder; None for the one the run was trained on.

    Raises:
        UserError: there are no weights, or they do not fit the dataset or the configuration.
    """
    config = read_config(run_dir / "config.yaml")
    if data is not None:
        config = replace(config, data=replace(config.data, path=str(data), synthetic=False))
    weights_path = run_dir / "model.safetensors"
    if not weights_path.is_file():
        raise UserError(f"{weights_path}: not there; it is written when a run finishes: train it to its end first")
    dataset = inputs.open_configured_dataset(config.data)
    device = devices.select_device(config.runtime.device)
    devices.limit_threads(device)
    accelerator = devices.make_accelerator(config, device)
    model = build_model(config.model, num_classes=len(dataset.classes))
    try:
        model.load_state_dict(load_file(weights_path))
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = one_line(str(error).strip().rpartition("\n")[2].strip())
        raise UserError(
            f"{weights_path}: does not hold this configuration's model for {len(dataset.classes)} classes: {reason}"
        ) from error
    loader = inputs.eval_loader(config, dataset, device=device)
    normalize = inputs.device_augment(config, len(dataset.classes)).normalise
    try:
        result = evaluate({"raw": model.to(device)}, loader, normalize, accelerator)
    finally:
        loader.close()
    return result["raw"]
