"""An exponential moving average of the weights, over the whole run. Must not know the loop."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """`average = decay × average + (1 - decay) × weights` after every step; buffers are copied.

    It is reported beside the raw weights and never instead of them (METHOD.md, quirk 2).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay
        self._weights = list(self.model.parameters())  # walking through a model's modules takes a step's millisecond
        self._of: nn.Module | None = None

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        if model is not self._of:
            self._of, self._current = model, list(model.parameters())
        torch._foreach_lerp_(self._weights, self._current, 1 - self._decay)
        for average, current in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(current)
