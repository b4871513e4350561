"""What only a GPU can show; benchmarks/gpu.sh runs these. Skipped, with that reason, where there is none."""

from functools import partial

import pytest
import torch

from test_compiled import CURRICULUM, batch_of, graphs, new_accelerator
from test_depthwise import SHAPES, reference
from test_depthwise import inputs as depthwise_inputs
from tiny import tiny_config, write_images
from vit24h.config import load_config
from vit24h.data import DeviceAugment
from vit24h.engine.compiled import Compiled
from vit24h.engine.device import allow_tf32
from vit24h.engine.ema import WeightAverage
from vit24h.engine.optim import build_optimizer
from vit24h.engine.step import TrainStep
from vit24h.engine.train import train
from vit24h.models import build_model, select_depthwise
from vit24h.models.depthwise import load_kernels, swish_convolve_swish
from vit24h.records import load_run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and torch sees none")


def make_step(feed_forward="mlp", *, compiled=None, precision="bf16", how="conv", real_augment=False, drop_path=0.0):
    settings = [f"feed_forward={feed_forward}", "embed_dim=64", "depth=2", "num_heads=2", "squeeze_reduction=64"]
    config = load_config("paper/baseline", overrides=[f"model.{one}" for one in (*settings, f"drop_path={drop_path}")])
    torch.manual_seed(0)
    accelerator = new_accelerator(precision)
    inner = build_model(config.model, 5).cuda()
    select_depthwise(inner, how)
    model, optimizer = accelerator.prepare(inner, build_optimizer(inner, config.optimizer))

    def augment(batch):
        return batch.images.float() / 128 - 1, torch.nn.functional.one_hot(batch.labels, 5).float()

    if real_augment:
        augment = DeviceAugment(config.augmentation, config.data.mean, config.data.std, 5, 0)
    average = WeightAverage(inner, 0.9)
    return TrainStep(accelerator, model, optimizer, augment, average, label_smoothing=0.1, compiled=compiled)


def losses(steps=50, **kind):
    step = make_step(**kind)
    return torch.stack([step(batch_of(number).to("cuda"), 3e-3) for number in range(steps)])


@pytest.mark.parametrize("shape", [*SHAPES, (8, 14, 14, 1536)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str
)
def test_the_triton_kernels_are_the_convolution_in_float64(shape, dtype, tolerance):
    load_kernels()
    hidden, weight, grid = depthwise_inputs(shape, torch.float64)
    hidden = hidden.detach().to(dtype)  # rounded once, before both
    ours = [hidden.cuda().requires_grad_(), weight.detach().to(torch.promote_types(dtype, torch.float32)).cuda()]
    ours[1].requires_grad_()
    theirs = [tensor.detach().double().requires_grad_() for tensor in ours]
    found, expected = swish_convolve_swish(*ours, grid, "triton"), reference(*theirs, grid)
    direction = torch.randn_like(expected).to(dtype).double()
    found_gradients = torch.autograd.grad(found, ours, direction.to(dtype))
    expected_gradients = torch.autograd.grad(expected, theirs, direction)
    for one, other in zip((found, *found_gradients), (expected, *expected_gradients), strict=True):
        assert (one.double() - other).abs().max() <= tolerance * other.abs().max().clamp(min=1.0)


@pytest.mark.parametrize("how", ["conv", "shifted", "triton"])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_50_compiled_steps_are_50_steps(how, cuda_graphs):
    plain = losses(feed_forward="locality")
    compiled = partial(Compiled, shapes=1, cuda_graphs=cuda_graphs)
    found = losses(feed_forward="locality", how=how, compiled=compiled)
    torch.testing.assert_close(found, plain, rtol=0.02, atol=0.02)


def test_50_steps_in_fp16_and_bf16_are_near_fp32():
    allow_tf32(torch.device("cuda"), allowed=False)
    plain = losses(precision="no")
    for precision in ("bf16", "fp16"):
        torch.testing.assert_close(losses(precision=precision), plain, rtol=0.03, atol=0.03)
    allow_tf32(torch.device("cuda"), allowed=True)
    torch.testing.assert_close(losses(precision="no"), plain, rtol=0.01, atol=0.01)


def test_the_seven_sizes_of_the_curriculum_are_seven_graphs():
    step, before = make_step(compiled=partial(Compiled, shapes=7), drop_path=0.2), graphs()
    for size in (*CURRICULUM, *CURRICULUM):
        assert torch.isfinite(step(batch_of(0, size).to("cuda"), 1e-3))
    assert graphs() - before == 7


@pytest.mark.parametrize("real_augment", [False, True], ids=["step", "augmentation and step"])
@pytest.mark.parametrize("feed_forward", ["mlp", "locality", "localvit"])
def test_nothing_in_a_step_waits_for_the_gpu(feed_forward, real_augment):
    step = make_step(feed_forward, real_augment=real_augment, drop_path=0.2)
    batch = batch_of(0).to("cuda")
    step(batch, 1e-3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(batch, 1e-3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_only_fp16_has_a_loss_scaler():
    assert new_accelerator("fp16").scaler is not None
    assert new_accelerator("bf16").scaler is None


def test_a_run_with_everything_switched_on(tmp_path):
    data = write_images(tmp_path / "images")
    switches = ["runtime.device=cuda", "runtime.compile=true", "runtime.depthwise=triton", "optimizer.precision=bf16"]
    switches += ["optimizer.constant_tokens=true", "optimizer.batch_size=3", "optimizer.learning_rate_scaling=sqrt"]
    result = train(tiny_config(data, *switches), tmp_path / "run")
    assert result["completed"]
    assert [row["image_size"] for row in load_run(tmp_path / "run").rows_of("compile")] == [8, 16, 24, 32]
