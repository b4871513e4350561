"""The depth-wise convolution of the locality feed-forward: three ways to compute one thing, checked in float64."""

import os
import re
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from vit24h.config import load_config
from vit24h.models import build_model, select_depthwise
from vit24h.models.depthwise import swish_convolve_swish

# (images, rows, columns, channels): more tokens and channels than one program takes, and fewer; odd numbers; one patch
SHAPES = [(2, 14, 14, 8), (3, 5, 7, 67), (1, 1, 1, 1), (2, 2, 9, 3), (7, 2, 2, 5)]


def reference(hidden, weight, grid):
    """By a convolution on feature maps laid out as PyTorch's documentation has them, not as a view of tokens."""
    images, _, channels = hidden.shape
    maps = F.hardswish(hidden).transpose(1, 2).reshape(images, channels, *grid).contiguous()
    return F.hardswish(F.conv2d(maps, weight, padding=1, groups=channels)).flatten(2).transpose(1, 2)


def inputs(shape, dtype):
    images, rows, columns, channels = shape
    generator = torch.Generator().manual_seed(sum(shape))
    hidden = 3 * torch.randn(images, rows * columns, channels, dtype=torch.float64, generator=generator)
    weight = torch.randn(channels, 1, 3, 3, dtype=torch.float64, generator=generator)
    # beyond ±3 and between, where h-swish has its corners
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), (rows, columns)


def compare(how, shape, dtype=torch.float64, tolerance=1e-10):
    hidden, weight, grid = inputs(shape, dtype)
    found = swish_convolve_swish(hidden, weight, grid, how)
    assert found.dtype == dtype
    wide_hidden, wide_weight = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    expected = reference(wide_hidden, wide_weight, grid)
    direction = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found_gradients = torch.autograd.grad((found * direction.to(dtype)).sum(), (hidden, weight))
    expected_gradients = torch.autograd.grad((expected * direction).sum(), (wide_hidden, wide_weight))
    for ours, theirs in zip((found, *found_gradients), (expected, *expected_gradients), strict=True):
        scale = theirs.abs().max().clamp(min=1.0)
        assert (ours.double() - theirs).abs().max() <= tolerance * scale


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("how", ["conv", "shifted", "triton"])  # without a GPU, triton is shifted
def test_every_way_is_the_convolution_in_float64(how, shape):
    compare(how, shape)


_INTERPRETED = """
import torch
from test_depthwise import SHAPES, compare, inputs
from vit24h.models import depthwise, depthwise_kernels
depthwise_kernels._PARTS = 3  # groups of seven images: three, three, and one
operation = torch.ops.vit24h.swish_convolve_swish
for shape in SHAPES:
    hidden, weight, grid = inputs(shape, torch.float64)
    assert depthwise._runs_kernels(hidden)
    compare("triton", shape)
    compare("triton", shape, torch.float32, 1e-5)
hidden, weight = torch.randn(2, 6, 3, requires_grad=True), torch.randn(3, 9, requires_grad=True)
torch.library.opcheck(operation, (hidden, weight, 2, 3))
print("checked")
"""


def in_the_interpreter(code):
    """Run Python with Triton's kernels interpreted; Triton decides that once for a process."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_kernels_are_the_convolution_in_float64():
    pytest.importorskip("triton", reason="Triton is not made for this platform")
    assert "checked" in in_the_interpreter(_INTERPRETED)


_IN_A_MODEL = """
import torch
from test_depthwise import tiny_model
from vit24h.models import select_depthwise
images = torch.randn(2, 3, 32, 48)
logits = {}
for how in ("conv", "triton", "compiled"):
    model = tiny_model()
    select_depthwise(model, "conv" if how == "conv" else "triton")
    run = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False) if how == "compiled" else model
    logits[how] = run(images)
    logits[how].square().sum().backward()
    logits[how] = (logits[how].detach(), *(p.grad for p in model.parameters()))
for how in ("triton", "compiled"):
    for ours, theirs in zip(logits[how], logits["conv"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
print("checked")
"""


def tiny_model():
    settings = ["image_size=48", "patch_size=8", "embed_dim=12", "num_heads=2", "depth=2", "drop_path=0"]
    torch.manual_seed(0)
    return build_model(load_config("paper/locality", overrides=[f"model.{one}" for one in settings]).model, 5)


def test_the_kernels_train_a_model_compiled_and_not():
    pytest.importorskip("triton", reason="Triton is not made for this platform")
    assert "checked" in in_the_interpreter(_IN_A_MODEL)


@pytest.mark.parametrize("how", ["shifted", "triton"])
def test_weights_fit_whichever_way_they_were_trained(how):
    plain, other = tiny_model(), tiny_model()
    select_depthwise(other, how)
    assert plain.state_dict().keys() == other.state_dict().keys()
    other.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 48, 24)
    torch.testing.assert_close(other(images), plain(images))


@pytest.mark.parametrize("how", ["conv", "shifted"])
def test_under_autocast_it_is_as_near_as_bf16_can_be(how):
    hidden, weight, grid = inputs((2, 5, 7, 16), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = swish_convolve_swish(hidden.bfloat16(), weight, grid, how)
    assert found.dtype == torch.bfloat16
    expected = reference(hidden.double(), weight.double(), grid)
    assert (found.double() - expected).abs().max() <= 2**-6 * expected.abs().max()  # bf16 has 8 bits


@pytest.mark.parametrize(("name", "sums"), [("bf16", "fp32"), ("fp64", "fp64")])
def test_the_kernels_compile_for_a_hopper_gpu_without_one(name, sums):
    """And hold no atomic addition: the same input gives the same sums."""
    triton = pytest.importorskip("triton", reason="Triton is not made for this platform")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vit24h.models import depthwise_kernels as kernels

    constants = {"sum_type": getattr(triton.language, {"fp32": "float32", "fp64": "float64"}[sums])}
    constants |= {"block_tokens": kernels._TOKENS, "block_channels": kernels._CHANNELS, "in_group": 2}
    for kernel in (kernels._forward, kernels._backward_of_sum, kernels._backward_of_input):
        signature = {}
        for argument in kernel.arg_names:
            if argument in ("weight", "partial"):
                signature[argument] = f"*{sums}"
            elif argument in ("u", "y", "dy", "dz", "du"):
                signature[argument] = f"*{name}"
            else:
                signature[argument] = "constexpr" if argument in constants else "i32"
        constexprs = {
            (place,): constants[argument] for place, argument in enumerate(kernel.arg_names) if argument in constants
        }
        source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs)
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert built.asm["cubin"]
        assert not re.search(r"\b(atom|red)\.", built.asm["ptx"])
