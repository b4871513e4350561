"""Training: a run's record is complete, a stop costs nothing, and what goes wrong is said."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from tiny import tiny_config, tiny_settings, write_images
from vit24h.data import Batch
from vit24h.engine import train as train_module
from vit24h.engine.ema import WeightAverage
from vit24h.engine.interruption import Interrupted
from vit24h.engine.optim import build_optimizer
from vit24h.engine.step import TrainStep
from vit24h.engine.team import Team
from vit24h.engine.train import Training, TrainingFailed, train
from vit24h.errors import UserError
from vit24h.models import build_model
from vit24h.records import load_run
from vit24h.records.reader import read_rows


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


def weights(run_dir):
    return load_file(run_dir / "model.safetensors")


def assert_bit_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """The combined arm in one go: 12 steps, 4 epochs, 4 image sizes."""
    run_dir = tmp_path_factory.mktemp("undisturbed")
    train(tiny_config(data), run_dir)
    return run_dir


# -- the record -----------------------------------------------------------------------------------------------------


def test_a_run_folder_is_complete(undisturbed):
    assert {path.name for path in undisturbed.iterdir() if not path.name.startswith(".")} == {
        "config.yaml",
        "environment.json",
        "log.jsonl",
        "checkpoints",
        "model.safetensors",
        "result.json",
    }
    run = load_run(undisturbed)
    assert run.state == "finished"
    assert Counter(row["event"] for row in run.rows) == {
        "start": 1,
        "stage": 4,
        "checkpoint": 4,  # at the three borders of stages, and when the last step is done
        "epoch": 4,
        "eval": 2,  # quick evaluates every second epoch: here the second and the fourth, which is also the last
        "end": 1,
    }
    assert [row["image_size"] for row in run.rows_of("stage")] == [8, 16, 24, 32]
    for row in run.rows:
        assert {"epoch", "step", "samples_seen", "image_size", "batch_size", "learning_rate", "clock"} <= row.keys()
        assert set(row["clock"]) == {"train_s", "eval_s", "checkpoint_s", "setup_s", "lost_s", "wall_s"}
    for row in run.rows_of("epoch"):
        assert row["train_loss"] > 0
        assert row["images_per_s"] > 0
        assert row["data_wait_s"] >= 0
    for row in run.rows_of("eval"):
        assert {"top1", "top5", "val_loss", "images"} <= row.keys()
        assert {"top1", "top5", "val_loss"} <= row["ema"].keys()
        assert row["images"] == 12
    assert run.result["top1"] == run.rows_of("eval")[-1]["top1"]
    assert run.result["samples_seen"] == 12 * 8
    assert run.environment["dataset"] == {
        "name": run.environment["dataset"]["name"],
        "fingerprint": run.environment["dataset"]["fingerprint"],
        "train_images": 24,
        "val_images": 12,
        "classes": 3,
        "packing": None,
    }
    assert "/" not in json.dumps(run.environment["dataset"])  # records are published: no paths


def test_a_finished_run_is_left_alone(undisturbed, data):
    before = (undisturbed / "log.jsonl").read_bytes()
    result = train(tiny_config(data), undisturbed)
    assert result == json.loads((undisturbed / "result.json").read_text())
    assert (undisturbed / "log.jsonl").read_bytes() == before


@pytest.mark.parametrize("arm", ["baseline", "locality", "curriculum", "localvit"])
def test_every_arm_trains(arm, data, tmp_path):
    result = train(tiny_config(data, arm=arm, steps=4), tmp_path)
    assert result["completed"]
    assert math.isfinite(result["val_loss"])


def test_it_learns(data, tmp_path):
    # The three classes differ in brightness, which RandAugment changes and mixing blurs. Chance is 33.
    plain = ["augmentation.randaugment_ops=0", "augmentation.mixup_alpha=0", "augmentation.cutmix_alpha=0"]
    result = train(tiny_config(data, *plain, arm="baseline", steps=120), tmp_path)
    assert result["top1"] > 70


def test_an_hours_budget_ends_within_a_step_and_is_spent_on_training_only(data, tmp_path):
    hours = 3 / 3600
    result = train(tiny_config(data, f"budget.hours={hours}", "budget.steps=null", "curriculum.size_step=8"), tmp_path)
    assert result["train_hours"] >= hours
    steps_per_s = result["steps"] / result["clock"]["train_s"]
    assert result["clock"]["train_s"] - 3 < 1 + 10 / steps_per_s  # one step; on a busy machine a slow one
    assert result["image_size"] == 32  # every stage was reached
    assert result["clock"]["eval_s"] > 0


def test_an_epoch_budget_ends_with_its_last_epoch(data, tmp_path):
    config = tiny_config(data, "budget.steps=null", "budget.epochs=2", arm="baseline")
    result = train(config, tmp_path)
    assert (result["epochs"], result["steps"], result["samples_seen"]) == (2.0, 6, 48)


def test_a_curriculum_by_epochs_changes_at_epoch_borders(data, tmp_path):
    by_epochs = ["curriculum.budget_fraction_per_stage=null", "curriculum.epochs_per_stage=1"]
    train(tiny_config(data, *by_epochs), tmp_path)
    stages = [(row["step"], row["image_size"]) for row in load_run(tmp_path).rows_of("stage")]
    assert stages == [(0, 8), (3, 16), (6, 24), (9, 32)]


def test_the_learning_rate_is_stepped_per_epoch_or_decays_with_the_budget(data, tmp_path):
    paper = ["optimizer.schedule_epochs=4", "optimizer.min_learning_rate=0", "optimizer.learning_rate=1.0"]
    rates = {}
    for name, settings in (("paper", paper), ("budget", [*paper, "optimizer.schedule_epochs=null"])):
        training = _started(tiny_config(data, *settings, arm="baseline"), tmp_path / name)
        rates[name] = []
        for _ in range(12):
            rates[name].append(training.learning_rate())
            training.position.advance(8, last_of_epoch=training.position.sample == 16)
        _ended(training)
    assert rates["paper"] == pytest.approx(
        [(1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in (0, 1, 2, 3) for _ in "abc"]
    )
    assert rates["budget"] == pytest.approx([(1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)])


def test_with_constant_tokens_small_images_come_in_large_batches(data, tmp_path):
    # 16 patches of 8 px at the full size, 17 tokens; at 8, 16, 24 px 2, 5, 10: batches of 24, 8 (13.6), 8
    larger = [
        "data.repeated_augmentation=1",
        "optimizer.constant_tokens=true",
        "optimizer.learning_rate_scaling=linear",
    ]
    rates = ["optimizer.schedule_epochs=300", "optimizer.min_learning_rate=1.0e-3", "optimizer.learning_rate=1.0e-3"]
    batch = ["optimizer.batch_size=3", "runtime.log_every_steps=1"]
    train(tiny_config(data, *larger, *rates, *batch, arm="curriculum"), tmp_path)
    run = load_run(tmp_path)
    assert run.state == "finished"
    found = {row["image_size"]: (row["batch_size"], row["learning_rate"]) for row in run.rows_of("checkpoint")}
    assert found == {
        8: (24, pytest.approx(8e-3)),
        16: (8, pytest.approx(8e-3 / 3)),
        24: (3, pytest.approx(1e-3)),  # 5 rounded down to a multiple of 8 is none
        32: (3, pytest.approx(1e-3)),
    }
    assert run.result["samples_seen"] == 3 * 24 + 3 * 8 + 6 * 3


def test_constant_tokens_need_a_dataset_that_fills_the_largest_batch(data, tmp_path):
    config = tiny_config(data, "optimizer.constant_tokens=true", arm="curriculum")
    with pytest.raises(UserError, match=r"optimizer.constant_tokens: makes batches of 64 images of 8 px, more than"):
        train(config, tmp_path)


def _started(config, run_dir):
    from vit24h.engine.interruption import StopSignals
    from vit24h.progress import TrainDisplay
    from vit24h.records import RunFolder

    accelerator = Accelerator(cpu=True)
    return Training(config, accelerator, Team(accelerator), RunFolder(run_dir), StopSignals(), TrainDisplay("test"))


def _ended(training):
    training.close()
    training.folder.close()


# -- the same result, however it came about -------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(workers, data, undisturbed, tmp_path):
    train(tiny_config(data, f"runtime.workers={workers}"), tmp_path)
    assert_bit_equal(weights(tmp_path), weights(undisturbed))


@pytest.mark.parametrize("workers", [0, 2])
def test_stops_in_mid_epoch_and_around_a_size_change_change_nothing(workers, data, undisturbed, tmp_path, monkeypatch):
    """Stopped after steps 2 and 8 (in the middle of an epoch), 3 (a border of epoch and size), 9 and in evaluation."""
    config = tiny_config(data, f"runtime.workers={workers}")
    stops = [2, 3, 6, 8, 9]
    for stop_at in stops:
        _stop_after_step(monkeypatch, stop_at)
        with pytest.raises(Interrupted) as stopped:
            train(config, tmp_path)
        assert stopped.value.exit_status == 143
    monkeypatch.undo()
    train(config, tmp_path)

    assert_bit_equal(weights(tmp_path), weights(undisturbed))
    one, other = load_run(undisturbed), load_run(tmp_path)
    assert len(other.rows_of("resume")) == len(stops)
    for event in ("stage", "epoch", "eval"):
        assert [_facts(row) for row in other.rows_of(event)] == [_facts(row) for row in one.rows_of(event)]
    assert other.result["clock"]["lost_s"] == 0  # it saved itself each time


def _stop_after_step(monkeypatch, step):
    """A real SIGTERM to this process, right after a step."""
    original = TrainStep.__call__

    def call(self, batch, learning_rate):
        loss = original(self, batch, learning_rate)
        if (batch.epoch * 24 + batch.position) // 8 + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    monkeypatch.setattr(TrainStep, "__call__", call)


def _facts(row):
    """What a row says about training; not about time."""
    return {key: row[key] for key in row.keys() - {"time", "clock", "images_per_s", "data_wait_s", "epoch_s", "link"}}


def test_after_a_kill_the_run_goes_back_to_its_checkpoint_and_says_what_was_lost(data, undisturbed, tmp_path):
    """kill -9 of the real command: the same weights in the end, no row twice, and lost time on record."""
    config = tiny_config(data)
    settings = [word for setting in [*_quick_overrides(data), "budget.steps=12"] for word in ("--set", setting)]
    command = [sys.executable, "-m", "vit24h", "train", "paper/combined", "--profile", "quick", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--run-dir", str(tmp_path)], env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None and len(read_rows(tmp_path / "log.jsonl")) < 6:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"event": "epo')  # a row that the kill cut off

    train(config, tmp_path)
    assert_bit_equal(weights(tmp_path), weights(undisturbed))
    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        json.loads(line)
    one, other = load_run(undisturbed), load_run(tmp_path)
    assert len(other.rows_of("resume")) == 1
    for event in ("stage", "epoch", "eval"):
        assert [_facts(row) for row in other.rows_of(event)] == [_facts(row) for row in one.rows_of(event)]
    assert other.result["clock"]["lost_s"] > 0


def _quick_overrides(data):
    from tiny import CURRICULUM

    return [*tiny_settings(data), *CURRICULUM]


# -- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_folder_of_another_run_is_refused_by_name_of_what_differs(undisturbed, data):
    with pytest.raises(UserError, match=r"another configuration \(seed 0 there, 1 here\)"):
        train(tiny_config(data, "seed=1"), undisturbed)


def test_other_images_under_the_same_run_are_refused(data, tmp_path, monkeypatch):
    _stop_after_step(monkeypatch, 2)
    with pytest.raises(Interrupted):
        train(tiny_config(data), tmp_path / "run")
    other = write_images(tmp_path / "other", train=9)
    with pytest.raises(UserError, match="not the images that"):
        train(tiny_config(other), tmp_path / "run")


def test_two_processes_cannot_write_one_run(data, tmp_path):
    training = _started(tiny_config(data), tmp_path)
    with pytest.raises(UserError, match=f"process {os.getpid()} is at work there"):
        train(tiny_config(data), tmp_path)
    _ended(training)


def test_a_corrupt_image_is_replaced_and_on_record(tmp_path):
    data = write_images(tmp_path / "images")
    (data / "train" / "class1" / "3.JPEG").write_text("not an image")
    result = train(tiny_config(data, steps=9), tmp_path / "run")
    incidents = load_run(tmp_path / "run").rows_of("incident")
    assert [(row["kind"], row["path"].rpartition("/")[2]) for row in incidents] == [("corrupt_image", "3.JPEG")]
    assert result["incidents"] == 1


def test_many_corrupt_images_end_the_run_with_their_names(tmp_path):
    data = write_images(tmp_path / "images")
    for name in ("1.JPEG", "3.JPEG", "6.JPEG"):
        (data / "train" / "class1" / name).write_text("not an image")
    with pytest.raises(TrainingFailed, match=r"more than 1 in 1000: restore them .*JPEG, .*JPEG"):
        train(tiny_config(data, steps=9), tmp_path / "run")
    assert load_run(tmp_path / "run").state == "failed"


@pytest.mark.parametrize("feed_forward", ["mlp", "localvit"])
def test_a_step_without_a_finite_loss_changes_nothing(feed_forward, data):
    arm = {"mlp": "baseline", "localvit": "localvit"}[feed_forward]
    config = tiny_config(data, arm=arm)
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(
        (inner := build_model(config.model, 3)), build_optimizer(inner, config.optimizer)
    )
    average = WeightAverage(inner, 0.9)
    poison = torch.tensor(math.nan)

    def augment(batch):
        return batch.images.float() / 255 * (poison if batch.position else 1.0), torch.nn.functional.one_hot(
            batch.labels, 3
        ).float()

    step = TrainStep(accelerator, model, optimizer, augment, average, label_smoothing=0.1)

    def batch(position):
        return Batch(
            images=torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8),
            labels=torch.tensor([0, 1, 2, 0]),
            erasing_boxes=torch.zeros(4, 4, dtype=torch.int32),
            epoch=0,
            position=position,
            image_size=32,
            last_of_epoch=False,
            incidents=[],
        )

    assert torch.isfinite(step(batch(0), 1e-2))
    before = {name: tensor.clone() for name, tensor in inner.state_dict().items()}
    assert torch.isnan(step(batch(1), 1e-2))
    for name, tensor in inner.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, before[name]), name
    assert torch.isfinite(step(batch(0), 1e-2))
    assert not torch.equal(inner.head.weight, before["head.weight"])


def test_a_loss_that_stays_non_finite_goes_back_once_then_stops_with_the_reason(data, tmp_path, monkeypatch):
    original = TrainStep.__call__

    def call(self, batch, learning_rate):
        loss = original(self, batch, learning_rate)
        return loss * math.nan if batch.epoch >= 1 else loss

    monkeypatch.setattr(TrainStep, "__call__", call)
    with pytest.raises(TrainingFailed, match=r"not finite for 10 steps in a row.*lower optimizer.learning_rate"):
        train(tiny_config(data, steps=60), tmp_path)
    run = load_run(tmp_path)
    kinds = Counter(row["kind"] for row in run.rows_of("incident"))
    assert kinds["rollback"] == 1
    assert kinds["non_finite_loss"] >= 20
    assert run.state == "failed"
    assert run.rows[-1]["clock"]["lost_s"] > 0


def test_a_run_that_failed_can_be_tried_again(data, tmp_path, monkeypatch):
    def fail(_self):
        raise TrainingFailed("for the test")

    monkeypatch.setattr(train_module.Training, "run", fail)
    with pytest.raises(TrainingFailed):
        train(tiny_config(data), tmp_path)
    monkeypatch.undo()
    assert train(tiny_config(data), tmp_path)["completed"]
    assert load_run(tmp_path).state == "finished"
