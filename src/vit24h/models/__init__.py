"""The models of the arms, and what one asks of them. Must not know: data, training, configs other than the model's."""

import copy
from typing import Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vit24h.config import ModelConfig
from vit24h.models.depthwise import Depthwise, load_kernels
from vit24h.models.locality import DepthwiseConv, LocalityBlock
from vit24h.models.localvit import LocalViTBlock
from vit24h.models.vit import Block, VisionTransformer

__all__ = ["VisionTransformer", "build_model", "count_macs", "no_weight_decay", "select_depthwise"]

_BLOCKS = {"mlp": Block, "locality": LocalityBlock, "localvit": LocalViTBlock}


def build_model(config: ModelConfig, num_classes: int) -> VisionTransformer:
    """The model of a config, its weights drawn from torch's global generator.

    It maps images (B, 3, H, W) to logits (B, num_classes) at any H and W that are multiples of the patch size.

    Raises:
        UserError: when the config's sizes do not fit each other
    """
    return VisionTransformer(config, num_classes, make_block=_BLOCKS[config.feed_forward])


def select_depthwise(model: nn.Module, how: Depthwise | Literal["auto"]) -> None:
    """How the locality feed-forward's convolution is computed from now on; other models have none and stay as is.

    Args:
        how: `auto`: PyTorch's convolution, until a GPU has shown that another way is faster.

    Raises:
        UserError: this machine cannot compute it so.
    """
    if how == "triton":
        load_kernels()
    for module in model.modules():
        if isinstance(module, DepthwiseConv):
            module.how = "conv" if how == "auto" else how


def no_weight_decay(model: nn.Module) -> set[str]:
    """Names of the parameters without weight decay: biases, norms, class token, position embedding."""
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim <= 1 or name.endswith(("cls_token", "pos_embed"))
    }


def count_macs(model: nn.Module, image_size: int) -> int:
    """Multiply-accumulates of the forward pass of one image of `image_size` pixels a side.

    Counts matrix products and convolutions, attention included; not what is done element by element. Computes nothing
    and leaves the model as it is.
    """
    # On the meta device attention falls apart into its two products; the counter does not know the CPU's fused kernel
    # and would count attention as nothing there.
    twin = copy.deepcopy(model).to("meta").eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        twin(torch.empty(1, 3, image_size, image_size, device="meta"))
    return counter.get_total_flops() // 2  # the counter's multiply and add are two operations
