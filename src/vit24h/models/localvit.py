"""LocalViT (Li et al., arXiv 2104.05707), the variant the paper compares with; a row of its table, not its method.

Against the paper's own feed-forward in `locality.py`: 1×1 convolutions and batch norms for the linear layers and the
layer norm, a squeeze-excitation, and no stochastic depth on it (METHOD.md, LocalViT-S). Must not know: data, training,
devices.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import SqueezeExcitation, StochasticDepth

from vit24h.config import ModelConfig
from vit24h.errors import UserError
from vit24h.models.depthwise import map_of, tokens_of
from vit24h.models.position import Grid
from vit24h.models.vit import Attention, LayerNorm


class LocalViTBlock(nn.Module):
    """Attention over all tokens, then LocalViT's feed-forward over the patch tokens alone."""

    def __init__(self, config: ModelConfig, drop_path: float):
        super().__init__()
        self.norm1 = LayerNorm(config.embed_dim)
        self.attn = Attention(config)
        self.mlp = LocalViTFeedForward(config)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        class_token, patches = tokens[:, :1], tokens[:, 1:]
        patches = patches + self.mlp(patches, grid)
        return torch.cat((class_token, patches), dim=1)


class LocalViTFeedForward(nn.Module):
    """1×1, depth-wise 3×3 and 1×1 convolution, each with batch norm; h-swish and squeeze-excitation in the middle."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        channels, hidden = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
        if hidden < config.squeeze_reduction:
            raise UserError(
                f"model.squeeze_reduction is {config.squeeze_reduction}, more than the feed-forward's {hidden} hidden "
                f"channels (embed_dim × mlp_ratio), so nothing is left to squeeze into; set it to {hidden} at most"
            )
        self.expand = nn.Conv2d(channels, hidden, kernel_size=1, bias=False)
        self.expand_norm = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(hidden)
        self.squeeze_excite = SqueezeExcitation(
            hidden, hidden // config.squeeze_reduction, activation=nn.ReLU, scale_activation=nn.Hardsigmoid
        )
        self.project = nn.Conv2d(hidden, channels, kernel_size=1, bias=False)
        self.project_norm = nn.BatchNorm2d(channels)

    def forward(self, patches: Tensor, grid: Grid) -> Tensor:
        """Patch tokens (B, rows · columns, C), row by row, to the same shape."""
        hidden = F.hardswish(self.expand_norm(self.expand(map_of(patches, grid))))
        hidden = F.hardswish(self.depthwise_norm(self.depthwise(hidden)))
        return tokens_of(self.project_norm(self.project(self.squeeze_excite(hidden))))
