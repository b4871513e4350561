"""Several processes train one run: each sample once, exact figures, one writer, stops and resumes together.

With `torchrun` as a user starts it, on the CPU over gloo.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from tiny import CURRICULUM, tiny_config, tiny_settings, write_images
from vit24h.data import BatchPlan
from vit24h.engine import inputs
from vit24h.engine.evaluate import evaluate
from vit24h.engine.inputs import epoch_order, open_configured_dataset, train_loader
from vit24h.models import build_model
from vit24h.records import load_run
from vit24h.records.reader import read_rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    # 25 validation images: two processes cannot share them evenly
    images = write_images(tmp_path_factory.mktemp("images"), val=8)
    write_one_more = sorted((images / "val" / "class0").iterdir())[0]
    (images / "val" / "class0" / "more.JPEG").write_bytes(write_one_more.read_bytes())
    return images


def launch(data, run_dir, *settings, steps=12, launcher=None):
    words = [*tiny_settings(data), *CURRICULUM, f"budget.steps={steps}", *settings]
    launcher = launcher or ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    command = ["-m", "vit24h", "train", "paper/combined", "--profile", "quick", "--run-dir", str(run_dir)]
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, *command, *(word for setting in words for word in ("--set", setting))],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("two")
    out, err = (process := launch(data, run_dir)).communicate(timeout=240)
    assert process.returncode == 0, err
    return run_dir, out


@pytest.mark.slow
def test_two_processes_make_one_record_that_says_so(finished):
    run_dir, out = finished
    run = load_run(run_dir)
    assert run.state == "finished"
    assert run.environment["processes"] == 2
    assert [row["image_size"] for row in run.rows_of("stage")] == [8, 16, 24, 32]
    assert len(run.rows_of("start")) == 1
    assert [row["step"] for row in run.rows_of("epoch")] == [3, 6, 9, 12]
    assert run.result["samples_seen"] == 12 * 8  # over both
    assert out.count("record in") == 1
    verdict = subprocess.run(
        [sys.executable, "-m", "vit24h", "verify", str(run_dir)], capture_output=True, text=True, check=False
    )
    assert verdict.returncode != 0
    assert re.search(r"broken +one GPU", verdict.stdout)


@pytest.mark.slow
def test_accuracy_is_exact_over_processes_without_duplicates(finished, data):
    run_dir, _ = finished
    result = json.loads((run_dir / "result.json").read_text())
    assert result["images"] == 25
    config = tiny_config(data)
    dataset = open_configured_dataset(config.data)
    model = build_model(config.model, len(dataset.classes))
    model.load_state_dict(load_file(run_dir / "model.safetensors"))
    loader = inputs.eval_loader(config, dataset, device=torch.device("cpu"))
    alone = evaluate({"raw": model}, loader, inputs.device_augment(config, 3).normalise, Accelerator(cpu=True))["raw"]
    assert (result["top1"], result["top5"]) == (alone["top1"], alone["top5"])
    assert result["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-6)


def test_each_sample_of_an_epoch_goes_to_one_process_and_repeats_are_spread(data):
    config = tiny_config(data, arm="baseline")
    dataset = open_configured_dataset(config.data)
    order = epoch_order(config, dataset)

    def batches(**share):
        with train_loader(
            config,
            dataset,
            order,
            lambda _epoch, _sample: BatchPlan(image_size=32, batch_size=8),
            device=torch.device("cpu"),
            start_epoch=0,
            start_position=0,
            **share,
        ) as loader:
            return [next(loader).images for _ in range(3)]

    shares = [batches(rank=rank, world_size=2) for rank in range(2)]
    for first, second, whole in zip(*shares, batches(), strict=True):
        # position by position, as in DeiT: the three crops of an image go to different processes in turn
        together = torch.stack([first, second], dim=1).flatten(0, 1)
        assert torch.equal(together, whole)


@pytest.mark.slow
def test_a_stop_is_taken_by_all_and_the_run_goes_on(data, tmp_path):
    log = tmp_path / "log.jsonl"
    process = launch(data, tmp_path, steps=400)
    end = time.monotonic() + 120
    while not (log.is_file() and len(read_rows(log)) > 4):
        assert time.monotonic() < end
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    rows = read_rows(log)
    assert (rows[-1]["event"], rows[-1]["reason"], rows[-1]["saved"]) == ("end", "interrupted", True), err
    stopped_at = rows[-1]["step"]

    process = launch(data, tmp_path, steps=400)
    while not any(row["event"] == "epoch" and row["step"] > stopped_at for row in read_rows(log)):
        assert time.monotonic() < end + 120
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    resumed = next(row for row in read_rows(log) if row["event"] == "resume")
    assert resumed["step"] == stopped_at
    assert read_rows(log)[-1]["step"] > stopped_at


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_refused(data, tmp_path):
    _, err = (process := launch(data, tmp_path, "optimizer.batch_size=7")).communicate(timeout=120)
    assert process.returncode != 0
    assert "optimizer.batch_size 7: not a multiple of the 2 processes" in err


@pytest.mark.slow
def test_accelerate_launch_on_the_cpu_starts_as_many_as_it_was_asked_for(data, tmp_path):
    accelerate = [
        "accelerate.commands.launch",
        "--num_processes",
        "2",
        "--cpu",
        "--main_process_port",
        str(free_port()),
    ]
    _, err = (process := launch(data, tmp_path, launcher=accelerate)).communicate(timeout=240)
    assert process.returncode == 0, err
    assert load_run(tmp_path).environment["processes"] == 2


def test_one_process_instead_of_several_is_not_passed_over_in_silence(data, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv(
        "MASTER_PORT", "29500"
    )  # several were asked for, and this process's parent does not say how many
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "vit24h",
            "train",
            "paper/baseline",
            "--data",
            str(data),
            "--run-dir",
            str(tmp_path / "run"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert "vit24h: accelerate launch started one process where several were asked for" in process.stderr
    assert not (tmp_path / "run").exists()
