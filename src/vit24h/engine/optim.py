"""The optimiser: AdamW, with weight decay where the recipe has it. Must not know the loop or the schedule."""

from __future__ import annotations

import torch
from torch import nn

from vit24h.config import OptimizerConfig
from vit24h.models import no_weight_decay


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW in two groups: with decay, and without it for biases, norms, class token and position embedding.

    Fused: one kernel for all parameters, which also takes a flag on the device to leave a step out (`TrainStep`).

    Source: METHOD.md, "Recipe of all arms".
    """
    without = no_weight_decay(model)
    parameters = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in parameters if name not in without], "weight_decay": config.weight_decay},
        {"params": [p for name, p in parameters if name in without], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)
