"""Accuracy on the validation images. Must not know training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn


@torch.inference_mode()
def evaluate(
    models: Mapping[str, nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
    normalize: Callable[[Tensor], Tensor],
    accelerator: Accelerator,
    *,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, dict[str, Any]] | None:
    """Top-1 and top-5 in percent, mean cross-entropy and number of images, for every model in one pass over the data.

    Args:
        batches: (images uint8 (B, 3, H, W), labels (B,)), every validation image once over all processes.
        normalize: uint8 images on the device -> what the model takes.
        stopped: asked before every batch; True ends the pass, and the answer is None.
    """
    sums = {name: torch.zeros(3, dtype=torch.float64, device=accelerator.device) for name in models}
    training = {name: model.training for name, model in models.items()}
    for model in models.values():
        model.eval()
    total = torch.zeros(1, dtype=torch.int64, device=accelerator.device)
    try:
        for images, labels in batches:
            if stopped():
                return None
            inputs = normalize(images.to(accelerator.device, non_blocking=True))
            labels = labels.to(accelerator.device, non_blocking=True)
            total += len(labels)
            for name, model in models.items():
                with accelerator.autocast():
                    logits = model(inputs)
                sums[name] += _sums(logits.float(), labels)
    finally:
        for name, model in models.items():
            model.train(training[name])
    images = int(accelerator.reduce(total, "sum"))
    results = {}
    for name, totals in sums.items():
        top1, top5, loss = (accelerator.reduce(totals, "sum") / images).tolist()
        results[name] = {"top1": 100 * top1, "top5": 100 * top5, "val_loss": loss, "images": images}
    return results


def _sums(logits: Tensor, labels: Tensor) -> Tensor:
    """(number right at first, number right within five, summed cross-entropy) of a batch; logits (B, K)."""
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (B, 5)
    right = ranked == labels[:, None]
    loss = F.cross_entropy(logits, labels, reduction="sum")
    return torch.stack([right[:, 0].sum(), right.any(dim=1).sum(), loss]).double()
