"""`vit24h doctor`: what would be found out hours into a run is found before it, with the remedy."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tiny import tiny_config, tiny_settings, write_images
from vit24h import doctor
from vit24h.data import open_dataset

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), train=60)


@pytest.fixture
def own_data(data, tmp_path):
    return Path(shutil.copytree(data, tmp_path / "images"))


def examined(config, folder, *, full=False):
    return {check.name: check for check in doctor.examine([config], folder, full=full)}


def test_a_machine_that_is_ready_has_nothing_to_mend(data, tmp_path):
    checks = examined(tiny_config(data, "runtime.workers=1"), tmp_path / "runs")
    assert [check for check in checks.values() if check.state == "fail"] == []
    assert checks.keys() == {
        "gpu",
        "driver",
        "memory",
        "/dev/shm",
        "write rights",
        "disk",
        "dataset",
        "images",
        "gpu memory",
        "loader",
    }
    assert checks["dataset"].found == "180 training and 12 validation images of 3 classes"
    assert checks["images"].state == "ok"
    assert checks["gpu memory"].state == "-"  # says what does not apply here
    assert "images/s at 8 px" in checks["loader"].found
    assert "images/s at 32 px" in checks["loader"].found
    assert not list((tmp_path / "runs").iterdir())  # nothing is left of it


def test_every_finding_that_is_not_right_says_what_to_do(data, tmp_path):
    config = tiny_config(data, "runtime.device=cuda", "runtime.workers=8", "runtime.prefetch_batches=100000")
    for check in doctor.examine([config], tmp_path):
        assert (check.state in ("warn", "fail")) == bool(check.remedy), check


def test_a_gpu_that_is_asked_for_and_not_there_fails(data, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    found = examined(tiny_config(data, "runtime.device=cuda"), tmp_path)["gpu"]
    assert found.state == "fail"
    assert "nvidia-smi" in found.remedy


def test_an_old_driver_is_named_with_the_one_that_is_wanted(data, tmp_path, monkeypatch):
    """The driver is what `nvidia-smi` says."""
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho 550.54.15\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}:{os.environ['PATH']}")
    checks = examined(tiny_config(data, "runtime.device=auto"), tmp_path)
    assert checks["driver"].state == "fail"
    assert "550.54.15" in checks["driver"].found
    assert "580" in checks["driver"].remedy
    assert checks["gpu"].state == "fail"  # the system has one, torch sees none
    smi.write_text("#!/bin/sh\necho 580.65.06\n")
    assert examined(tiny_config(data), tmp_path)["driver"].state == "ok"


def test_a_full_size_run_without_a_gpu_is_warned_about(data, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    config = replace(tiny_config(data, "runtime.device=auto"), smoke=False)
    assert examined(config, tmp_path)["gpu"].state == "warn"


def test_too_little_shared_memory_is_named_with_the_size_that_is_wanted(data, tmp_path):
    """Not a small /dev/shm, but more ready batches than any has room for."""
    config = tiny_config(data, "runtime.workers=8", "runtime.prefetch_batches=100000000")
    found = examined(config, tmp_path)["/dev/shm"]
    assert found.state == "fail"
    assert "--shm-size=" in found.remedy


def test_a_disk_without_room_for_checkpoints_fails(data, small_disk):
    found = examined(tiny_config(data), small_disk)["disk"]
    assert found.state == "fail"
    assert "make room" in found.remedy


def test_a_folder_that_cannot_be_written_fails(data, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    found = examined(tiny_config(data), small_disk / "runs")["write rights"]
    assert found.state == "fail"
    assert "Read-only file system" in found.found
    assert "VIT24H_RUNS" in found.remedy


def test_a_dataset_that_is_not_there_fails_and_what_needs_it_is_left_out(tmp_path):
    checks = examined(tiny_config(tmp_path / "nowhere"), tmp_path)
    assert checks["dataset"].state == "fail"
    assert "does not exist" in checks["dataset"].found
    assert "images" not in checks


def test_a_batch_that_is_larger_than_an_epoch_fails(data, tmp_path):
    found = examined(tiny_config(data, "optimizer.batch_size=500"), tmp_path)["dataset"]
    assert found.state == "fail"
    assert "optimizer.batch_size 500" in found.found


def test_sampled_images_that_cannot_be_decoded_are_named(own_data, tmp_path):
    bad = [own_data / "train" / "class0" / "0.JPEG", own_data / "val" / "class0" / "0.JPEG"]
    for path, state in zip(bad, ("warn", "fail"), strict=True):  # training replaces one, an evaluation needs all
        path.write_text("not an image")
        found = examined(tiny_config(own_data), tmp_path)["images"]
        assert found.state == state
        assert f"{path} (not an image)" in found.found


def test_full_finds_the_one_bad_image_that_a_sample_misses(own_data, tmp_path):
    missed = open_dataset(own_data).train.path(2)  # of 180, about every sixth is looked at
    missed.write_bytes(missed.read_bytes()[:200])
    assert examined(tiny_config(own_data), tmp_path)["images"].state == "ok"
    found = examined(tiny_config(own_data), tmp_path, full=True)["images"]
    assert found.state == "warn"  # one is replaced
    assert str(missed) in found.found
    bad_val = own_data / "val" / "class0" / "1.JPEG"
    bad_val.write_text("not an image")
    found = examined(tiny_config(own_data), tmp_path, full=True)["images"]
    assert found.state == "fail"  # an evaluation needs all
    assert str(bad_val) in found.found


def vit24h(*words, runs):
    return subprocess.run(
        [sys.executable, "-m", "vit24h", *words],
        env={**os.environ, "VIT24H_RUNS": str(runs)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_shows_every_check_and_a_suite_does_not_start_on_a_failure(data, tmp_path):
    settings = [word for setting in tiny_settings(data) for word in ("--set", setting)]
    settings += ["--set", "budget.steps=3"]
    shown = vit24h("doctor", "baseline", "--profile", "quick", *settings, runs=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "180 training and 12 validation images of 3 classes" in shown.stdout
    assert shown.stdout.splitlines()[-1].endswith("0 failures")

    broken = [*settings, "--set", "optimizer.batch_size=500"]
    shown = vit24h("doctor", "baseline", "--profile", "quick", *broken, runs=tmp_path)
    assert shown.returncode == 2
    assert shown.stdout.splitlines()[-1].endswith("1 failure")
    refused = vit24h("suite", "--quick", "--name", "refused", "--arms", "baseline", *broken, runs=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("vit24h: dataset: optimizer.batch_size 500: more than the 168 samples")
    assert len(refused.stderr.splitlines()) == 1
    assert not (tmp_path / "refused" / "baseline").exists()
