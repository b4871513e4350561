"""The compiled step: the same training, one graph for each image size, never uncompiled code in silence."""

import os
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from tiny import tiny_config, write_images
from vit24h import doctor
from vit24h.config import load_config
from vit24h.data import Batch
from vit24h.engine import compiled as compiled_module
from vit24h.engine.compiled import CompileClock, Compiled, require_compiler
from vit24h.engine.device import allow_tf32
from vit24h.engine.ema import WeightAverage
from vit24h.engine.optim import build_optimizer
from vit24h.engine.step import TrainStep
from vit24h.engine.train import train
from vit24h.errors import UserError
from vit24h.models import build_model, select_depthwise
from vit24h.records import load_run

CURRICULUM = [32, 64, 96, 128, 160, 192, 224]
WITHOUT_KERNELS = partial(Compiled, backend="aot_eager")  # the same graphs, forward and backward; nothing is built


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(threads)


def new_accelerator(precision, *, cpu=False):
    """One that forgets the process's last one, which may have been of another precision."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=cpu, mixed_precision=precision)


def make_step(feed_forward="mlp", *, compiled=None, precision="no", how="conv", image_size=224, drop_path=0.0):
    """A step on a tiny model (7 × 7 patches at the full size), that learns from noise."""
    settings = [f"feed_forward={feed_forward}", f"image_size={image_size}", "patch_size=32", "embed_dim=16", "depth=2"]
    settings += ["num_heads=2", "squeeze_reduction=16", f"drop_path={drop_path}"]
    config = load_config("paper/baseline", overrides=[f"model.{one}" for one in settings])
    torch.manual_seed(0)
    accelerator = new_accelerator(precision, cpu=True)
    inner = build_model(config.model, 5)
    select_depthwise(inner, how)
    model, optimizer = accelerator.prepare(inner, build_optimizer(inner, config.optimizer))

    def augment(batch):
        return batch.images.float() / 128 - 1, torch.eye(5)[batch.labels]

    average = WeightAverage(inner, 0.9)
    step = TrainStep(accelerator, model, optimizer, augment, average, label_smoothing=0.1, compiled=compiled)
    return step, inner, average


def batch_of(number, size=64, count=4):
    generator = torch.Generator().manual_seed(number % 4)  # four batches again and again: they can be learned
    return Batch(
        images=torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=generator),
        labels=torch.randint(5, (count,), generator=generator),
        erasing_boxes=torch.zeros(count, 4, dtype=torch.int32),
        epoch=0,
        position=0,
        image_size=size,
        last_of_epoch=False,
        incidents=[],
    )


def losses(steps=50, **kind):
    step, _, _ = make_step(**kind)
    return torch.stack([step(batch_of(number), 3e-3) for number in range(steps)])


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


# -- the same results -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feed_forward", ["mlp", "locality", "localvit"])
def test_50_compiled_steps_are_50_steps(feed_forward):
    plain = losses(feed_forward=feed_forward)
    assert plain[-4:].mean() < 0.9 * plain[:4].mean()  # the comparison is about something
    found = losses(feed_forward=feed_forward, compiled=partial(WITHOUT_KERNELS, shapes=1))
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


def test_50_steps_by_shifted_products_are_50_steps():
    plain = losses(feed_forward="locality")
    torch.testing.assert_close(losses(feed_forward="locality", how="shifted"), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("feed_forward", ["mlp", "locality", "localvit"])
def test_50_steps_in_bf16_stay_within_two_percent(feed_forward):
    plain, found = losses(feed_forward=feed_forward), losses(feed_forward=feed_forward, precision="bf16")
    torch.testing.assert_close(found, plain, rtol=0.02, atol=0.02)
    assert not torch.equal(found, plain)


@pytest.mark.slow
def test_50_steps_with_compiled_kernels_are_50_steps():
    require_compiler(on_gpu=False)  # where there is none, this names what to install
    for feed_forward, how in (("mlp", "conv"), ("locality", "shifted")):
        plain = losses(feed_forward=feed_forward)
        found = losses(feed_forward=feed_forward, how=how, compiled=partial(Compiled, shapes=1))
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


# -- one graph for each size ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("feed_forward", ["mlp", "locality", "localvit"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_seven_sizes_of_the_curriculum_are_seven_graphs(feed_forward, precision):
    step, _, _ = make_step(
        feed_forward, compiled=partial(WITHOUT_KERNELS, shapes=7), precision=precision, how="shifted", drop_path=0.2
    )
    before = graphs()
    for size in CURRICULUM:
        assert torch.isfinite(step(batch_of(0, size, count=2), 1e-3))
    assert graphs() - before == 7
    for size in CURRICULUM:  # as after an evaluation: nothing is compiled again
        step(batch_of(0, size, count=2), 1e-3)
    assert graphs() - before == 7


def test_a_second_model_in_the_process_has_its_own_count():
    before = graphs()
    for _ in range(2):
        step, _, _ = make_step(compiled=partial(WITHOUT_KERNELS, shapes=7))
        for size in CURRICULUM:
            step(batch_of(0, size, count=2), 1e-3)
    assert graphs() - before == 14


def test_more_shapes_than_planned_are_an_error_and_not_slow():
    step, _, _ = make_step(compiled=partial(WITHOUT_KERNELS, shapes=2))
    with torch._dynamo.config.patch(recompile_limit=2):
        for size in (32, 64):
            step(batch_of(0, size), 1e-3)
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            step(batch_of(0, 96), 1e-3)


def test_what_cannot_be_one_graph_is_an_error():
    def broken(x):
        torch._dynamo.graph_break()
        return x + 1

    with pytest.raises(torch._dynamo.exc.Unsupported):
        WITHOUT_KERNELS(broken, shapes=1)(torch.zeros(2))


def test_compiling_renames_nothing():
    step, inner, average = make_step(compiled=partial(WITHOUT_KERNELS, shapes=1))
    _, plain, _ = make_step()
    step(batch_of(0), 1e-3)
    assert list(inner.state_dict()) == list(plain.state_dict()) == list(average.model.state_dict())


def test_evaluation_is_not_compiled():
    step, inner, average = make_step(compiled=partial(WITHOUT_KERNELS, shapes=1))
    step(batch_of(0), 1e-3)
    before = graphs()
    with torch.inference_mode():
        for model in (inner.eval(), average.model):
            for count in (4, 3):
                model(torch.zeros(count, 3, 224, 224))
    inner.train()
    step(batch_of(1), 1e-3)
    assert graphs() == before


# -- the time it takes ----------------------------------------------------------------------------------------------


def test_the_compile_clock_counts_compiling_alone():
    clock = CompileClock()
    try:
        step, _, _ = make_step(compiled=partial(WITHOUT_KERNELS, shapes=1))
        assert clock.take() == 0.0
        step(batch_of(0), 1e-3)
        assert clock.take() > 0.0
        step(batch_of(1), 1e-3)
        assert clock.take() == 0.0
    finally:
        clock.close()
    make_step(compiled=partial(WITHOUT_KERNELS, shapes=1))[0](batch_of(0), 1e-3)
    assert clock.take() == 0.0  # closed


def test_a_compiled_run_records_what_compiling_took_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled_module, "Compiled", WITHOUT_KERNELS)
    data = write_images(tmp_path / "images")
    train(tiny_config(data, "runtime.compile=true", "runtime.depthwise=shifted"), tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.state == "finished"
    assert [row["image_size"] for row in run.rows_of("compile")] == [8, 16, 24, 32]
    assert all(row["compile_s"] > 0 for row in run.rows_of("compile"))
    assert sum(row["compile_s"] for row in run.rows_of("compile")) < run.result["clock"]["train_s"]  # counted
    plain = train(tiny_config(data), tmp_path / "plain")
    assert load_run(tmp_path / "plain").rows_of("compile") == []
    assert (
        load_file(tmp_path / "run" / "model.safetensors").keys()
        == load_file(tmp_path / "plain" / "model.safetensors").keys()
    )
    assert run.result["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-3)


@pytest.mark.slow
def test_a_run_trains_with_compiled_kernels(tmp_path):
    data = write_images(tmp_path / "images")
    result = train(tiny_config(data, "runtime.compile=true", arm="baseline", steps=4), tmp_path / "run")
    assert result["completed"]
    assert len(load_run(tmp_path / "run").rows_of("compile")) == 1


@pytest.mark.parametrize("on_gpu", [False, True])
def test_without_a_compiler_the_message_names_what_to_install(on_gpu, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"no compiler found.*install g\+\+ and python3-dev.*runtime\.compile=false"):
        require_compiler(on_gpu=on_gpu)


def test_without_pythons_headers_the_message_names_what_to_install(tmp_path, monkeypatch):
    compiler = tmp_path / "g++"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(compiled_module.sysconfig, "get_path", lambda _name: str(tmp_path))
    with pytest.raises(UserError, match=r"no Python\.h"):
        require_compiler(on_gpu=False)


def test_by_default_a_cpu_compiles_nothing():
    runtime = load_config("paper/baseline").runtime
    assert runtime.compile == "auto"
    assert compiled_module.configured(runtime, new_accelerator("no", cpu=True), shapes=7) is None


# -- nothing waits for the device -----------------------------------------------------------------------------------


class NoReadingBack(TorchDispatchMode):
    """Refuses what would make a GPU's host wait until all that is queued is done."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        assert not name.startswith(
            ("aten._local_scalar_dense", "aten.item", "aten.nonzero", "aten.masked_select", "aten.unique", "aten.equal")
        ), f"{name} waits for the device"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("feed_forward", ["mlp", "locality", "localvit"])
def test_a_step_reads_nothing_back(feed_forward):
    step, _, _ = make_step(feed_forward, drop_path=0.2)
    batches = [batch_of(number) for number in range(2)]
    with NoReadingBack():
        found = [step(batch, 1e-3) for batch in batches]
    assert all(torch.isfinite(loss) for loss in found)
    with pytest.raises(AssertionError, match="waits"), NoReadingBack():
        found[0].item()  # the guard sees it


def test_only_fp16_has_a_loss_scaler():
    for precision in ("no", "bf16"):
        assert new_accelerator(precision, cpu=True).scaler is None


def test_a_cpu_is_never_told_of_tf32():
    before = torch.get_float32_matmul_precision()
    allow_tf32(torch.device("cpu"), allowed=True)
    assert torch.get_float32_matmul_precision() == before


def test_the_kernel_cache_is_the_users_where_he_names_one(tmp_path, monkeypatch):
    monkeypatch.setenv("VIT24H_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    WITHOUT_KERNELS(lambda x: x, shapes=1)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    WITHOUT_KERNELS(lambda x: x, shapes=1)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "torchinductor")


def test_the_doctor_looks_for_a_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    check = doctor._compiler(torch.device("cuda"))
    assert (check.state, check.name) == ("fail", "compiler")
    assert "install g++ and python3-dev" in check.remedy
