"""The learned position embedding at any grid of patches: one parameter, resampled where it is used.

The parameter stays at the full image size's grid for the whole run. Smaller, larger and non-square grids see a bicubic
resampling of it that gradients flow through, so every training step trains it and nothing is ever rebuilt (METHOD.md,
quirk 1). Must not know: the model around it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

Grid = tuple[int, int]  # rows, columns of patches


def resample_positions(embedding: Tensor, full: Grid, grid: Grid) -> Tensor:
    """The embedding of a `grid` of patches, from the one learned for the `full` grid.

    Bicubic, corners not aligned, no antialiasing, as `F.interpolate` does it (METHOD.md, image-size curriculum). The
    first row belongs to the class token and is passed on as it is; at the full grid so is everything.

    Args:
        embedding: (1, 1 + full rows × full columns, C)

    Returns:
        (1, 1 + rows × columns, C), differentiable with respect to `embedding`
    """
    if grid == full:
        return embedding
    class_row, patches = embedding[:, :1], embedding[0, 1:]
    # Two small matrix products: on a GPU, the interpolation kernel's backward loops over channels in every thread and
    # adds atomically, which is slow and not deterministic. Autocast leaves float64 alone, so nothing is rounded here.
    rows, columns = (_bicubic_matrix(*sizes, patches) for sizes in zip(full, grid, strict=True))
    patches = rows @ patches.double().unflatten(0, full).flatten(1)  # (rows, full columns · C)
    patches = columns @ patches.unflatten(1, (full[1], -1))  # (rows, columns, C)
    return torch.cat((class_row, patches.flatten(0, 1).to(embedding.dtype)[None]), dim=1)


def _bicubic_matrix(old: int, new: int, like: Tensor) -> Tensor:
    """(new, old) float64: the linear map that resamples a line of `old` values to `new`, as the image of the identity.

    Made anew each time instead of kept: it is three small kernels, and a compiler folds them into one.
    """
    identity = torch.eye(old, dtype=torch.float64, device=like.device)
    lines = identity[None, :, :, None]  # (1, old lines, old values, 1)
    return F.interpolate(lines, size=(new, 1), mode="bicubic", align_corners=False)[0, :, :, 0].T
