"""The paper's locality feed-forward ("Ours*"): the perceptron of a block with a depth-wise convolution in its middle.

Patch tokens meet their eight neighbours on the grid of patches; the class token passes by unchanged (METHOD.md,
locality feed-forward). Must not know: data, training, devices.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from vit24h.config import ModelConfig
from vit24h.models.position import Grid
from vit24h.models.vit import Attention, LayerNorm


class LocalityBlock(nn.Module):
    """Attention over all tokens, then the locality feed-forward over the patch tokens alone."""

    def __init__(self, config: ModelConfig, drop_path: float):
        super().__init__()
        self.norm1 = LayerNorm(config.embed_dim)
        self.attn = Attention(config)
        self.norm2 = LayerNorm(config.embed_dim)
        self.mlp = LocalityFeedForward(config)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        class_token, patches = tokens[:, :1], tokens[:, 1:]
        patches = patches + self.drop_path(self.mlp(self.norm2(patches), grid))
        return torch.cat((class_token, patches), dim=1)


class LocalityFeedForward(nn.Module):
    """Linear, h-swish, depth-wise 3×3 convolution, h-swish, linear; no biases, no batch norm."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        hidden = int(config.embed_dim * config.mlp_ratio)
        self.fc1 = nn.Linear(config.embed_dim, hidden, bias=False)
        self.depthwise = DepthwiseConv(hidden)
        self.fc2 = nn.Linear(hidden, config.embed_dim, bias=False)

    def forward(self, patches: Tensor, grid: Grid) -> Tensor:
        """Patch tokens (B, rows · columns, C), row by row, to the same shape."""
        hidden = F.hardswish(self.fc1(patches))
        hidden = F.hardswish(self.depthwise(hidden, grid))
        return self.fc2(hidden)


class DepthwiseConv(nn.Conv2d):
    """A 3×3 convolution of each channel by itself, over tokens laid out on their grid; zeros beyond the border."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, kernel_size=3, padding=1, groups=channels, bias=False)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Tokens (B, rows · columns, C), row by row, to the same shape."""
        return tokens_of(super().forward(map_of(tokens, grid)))


def map_of(tokens: Tensor, grid: Grid) -> Tensor:
    """Tokens (B, rows · columns, C) seen as a feature map (B, C, rows, columns): a channels-last view, no copy."""
    return tokens.unflatten(1, grid).permute(0, 3, 1, 2)


def tokens_of(feature_map: Tensor) -> Tensor:
    """The way back: a feature map (B, C, rows, columns) seen as tokens (B, rows · columns, C)."""
    return feature_map.flatten(2).transpose(1, 2)
