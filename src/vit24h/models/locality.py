"""The paper's locality feed-forward ("Ours*"): the perceptron of a block with a depth-wise convolution in its middle.

Patch tokens meet their eight neighbours on the grid of patches; the class token passes by unchanged (METHOD.md,
locality feed-forward). Must not know: data, training, devices.
"""

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from vit24h.config import ModelConfig
from vit24h.models.depthwise import Depthwise, swish_convolve_swish
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
        return self.fc2(self.depthwise(self.fc1(patches), grid))


class DepthwiseConv(nn.Conv2d):
    """h-swish, a 3×3 convolution of each channel by itself, h-swish; over tokens laid out on their grid.

    `how` it is computed changes its speed and nothing else; the weight is the same.
    """

    def __init__(self, channels: int):
        super().__init__(channels, channels, kernel_size=3, padding=1, groups=channels, bias=False)
        self.how: Depthwise = "conv"

    def forward(self, hidden: Tensor, grid: Grid) -> Tensor:
        """Tokens (B, rows · columns, C), row by row, to the same shape."""
        return swish_convolve_swish(hidden, self.weight, grid, self.how)
