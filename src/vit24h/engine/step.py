"""One training step: batch in, weights changed, loss out. Must not know clocks, schedules, files."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from vit24h.data import Batch
from vit24h.engine.compiled import Compiled
from vit24h.engine.ema import WeightAverage


class TrainStep:
    """Augment, forward, backward, update, average; nothing waits for the device.

    A step whose loss is not finite changes nothing: the fused optimiser is told so by a flag that never leaves the
    device. In fp16 the loss scaler does the same and lowers its scale.

    Args:
        model, optimizer: as prepared by `accelerator`.
        augment: a batch on the device -> (images (B, 3, H, W), soft targets (B, K)).
        compiled: makes another function of the one from (model, images, targets) to the loss; None leaves it as it is.
            Forward and backward are compiled; the optimiser is one fused kernel already.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        augment: Callable[[Batch], tuple[Tensor, Tensor]],
        average: WeightAverage,
        *,
        label_smoothing: float,
        compiled: Callable[[Callable[..., Tensor]], Compiled] | None = None,
    ) -> None:
        self._accelerator = accelerator
        self._model = model
        self._optimizer = optimizer
        self._augment = augment
        self._average = average
        self._unwrapped = accelerator.unwrap_model(model)

        def loss_of(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
            logits = model(images)  # (B, K), float32 whatever the arithmetic inside
            return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)

        self._loss_of = loss_of if compiled is None else compiled(loss_of)
        # BatchNorm's running statistics (LocalViT) change in the forward pass, before the loss is known
        self._statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]

    def __call__(self, batch: Batch, learning_rate: float) -> Tensor:
        """Train on a batch that lies on the device; the loss, a scalar on the device, not finite if nothing changed."""
        images, targets = self._augment(batch)
        before = [buffer.clone() for buffer in self._statistics]
        loss = self._loss_of(self._model, images, targets)
        self._accelerator.backward(loss)
        # Over several processes: the mean, so that all of them take the step or none does.
        loss = self._accelerator.reduce(loss.detach(), "mean")

        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        finite = torch.isfinite(loss)
        if self._accelerator.scaler is None:
            fused = getattr(self._optimizer, "optimizer", self._optimizer)  # below accelerate's wrapper
            fused.found_inf = (~finite).float()
        self._optimizer.step()
        self._optimizer.zero_grad()
        for buffer, old in zip(self._statistics, before, strict=True):
            buffer.copy_(torch.where(finite, buffer, old))
        self._average.update(self._unwrapped)
        return loss
