"""The Vision Transformer as DeiT trains it (arXiv 2012.12877), for images of any size that its patches tile.

Layers carry timm's names, so the weights of `deit_small_patch16_224` load by name and give the same logits. The arms
differ in the second half of a block: the plain one is here, the others are in `locality.py` and `localvit.py`.
Must not know: data, training, devices.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from vit24h.config import ModelConfig
from vit24h.errors import UserError
from vit24h.models.position import Grid, resample_positions

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class VisionTransformer(nn.Module):
    """Class token, learned positions, pre-norm blocks, linear head on the class token.

    Args:
        config: sizes and options; `image_size` is the size whose grid the position embedding is learned for
        num_classes: length of the logits
        make_block: called with the config and the block's stochastic-depth probability, makes a module that maps
            tokens (B, 1 + rows · columns, C) and the grid (rows, columns) to tokens of the same shape

    Raises:
        UserError: when sizes do not divide each other

    Weights are drawn from torch's global generator.
    """

    def __init__(self, config: ModelConfig, num_classes: int, make_block: Callable[[ModelConfig, float], nn.Module]):
        super().__init__()
        _require_multiple("model.image_size", config.image_size, "model.patch_size", config.patch_size)
        side = config.image_size // config.patch_size
        self.full_grid: Grid = (side, side)
        self.patch_embed = PatchEmbed(config.patch_size, config.embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, config.embed_dim))
        self.blocks = nn.ModuleList(
            make_block(config, config.drop_path * index / max(config.depth - 1, 1)) for index in range(config.depth)
        )
        self.norm = LayerNorm(config.embed_dim)
        self.head = nn.Linear(config.embed_dim, num_classes)
        self._initialise(config.init)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, 3, H, W), normalised; H and W are multiples of the patch size."""
        tokens, grid = self.patch_embed(images)
        class_token = self.cls_token.expand(len(tokens), -1, -1)
        tokens = torch.cat((class_token, tokens), dim=1)  # (B, 1 + rows · columns, C)
        tokens = tokens + resample_positions(self.pos_embed, self.full_grid, grid)
        for block in self.blocks:
            tokens = block(tokens, grid)
        # Only the class token is read, so only it is normalised.
        return self.head(self.norm(tokens[:, 0]))

    def _initialise(self, scheme: str) -> None:
        """Linear layers, class token and positions; convolutions and norms keep PyTorch's defaults, as in DeiT.

        `deit`: normal of deviation 0.02, biases zero. `released`: Xavier normal, PyTorch's biases (METHOD.md, quirk 8).
        """
        fill = {"deit": partial(nn.init.trunc_normal_, std=0.02), "released": nn.init.xavier_normal_}[scheme]
        for module in self.modules():
            if isinstance(module, nn.Linear):
                fill(module.weight)
                if module.bias is not None and scheme == "deit":
                    nn.init.zeros_(module.bias)
        fill(self.cls_token)
        fill(self.pos_embed)


class Block(nn.Module):
    """DeiT's block: attention, then a two-layer perceptron, each on normalised tokens and added to them."""

    def __init__(self, config: ModelConfig, drop_path: float):
        super().__init__()
        self.norm1 = LayerNorm(config.embed_dim)
        self.attn = Attention(config)
        self.norm2 = LayerNorm(config.embed_dim)
        self.mlp = Mlp(config)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:  # noqa: ARG002 - the perceptron sees each token alone
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class PatchEmbed(nn.Module):
    """Cuts images into square patches and projects each to a token."""

    def __init__(self, patch_size: int, embed_dim: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> tuple[Tensor, Grid]:
        """Images (B, 3, H, W) to tokens (B, rows · columns, C), row by row, and the grid (rows, columns)."""
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise UserError(
                f"images of {height}×{width} px: height and width must be multiples of the model's patch size, "
                f"{self.patch_size} px; resize or crop them"
            )
        patches = self.proj(images)  # (B, C, rows, columns)
        return patches.flatten(2).transpose(1, 2), (height // self.patch_size, width // self.patch_size)


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        _require_multiple("model.embed_dim", config.embed_dim, "model.num_heads", config.num_heads)
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim, bias=config.qkv_bias)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        qkv = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1))  # (B, N, 3, heads, head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, head_dim)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # (B, N, C)


class Mlp(nn.Module):
    """Two linear layers with GELU between, on each token alone."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        hidden = int(config.embed_dim * config.mlp_ratio)
        self.fc1 = nn.Linear(config.embed_dim, hidden)
        self.fc2 = nn.Linear(hidden, config.embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


def _require_multiple(name: str, value: int, of_name: str, of: int) -> None:
    if value < of or value % of:
        below = value // of * of
        nearest = f"{below} or {below + of}" if below else f"{of}"
        raise UserError(
            f"{name} is {value}, not a multiple of {of_name}, {of}; set {name} to {nearest}, or change {of_name}"
        )
