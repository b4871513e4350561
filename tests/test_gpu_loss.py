"""A lost GPU: noticed, saved where it can be, and told by an exit status that asks for a new start.

No GPU is needed. CUDA's errors are raised by hand here; a device that is really refused by a container's device rules
is in test_container.py.
"""

from __future__ import annotations

import ctypes
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

from tiny import tiny_config, tiny_settings, write_images
from vit24h import cli, gpu_loss
from vit24h.engine import device as devices
from vit24h.engine import train as train_module
from vit24h.engine.step import TrainStep
from vit24h.engine.train import train
from vit24h.gpu_loss import GpuLost, lost_access, noticing_gpu_loss
from vit24h.records import load_run
from vit24h.suite import PlannedRun, Suite


def cuda_error(code: int) -> torch.AcceleratorError:
    """As torch raises it: the error's number is an attribute."""
    error = torch.AcceleratorError(f"CUDA error: {code}")
    error.error_code = code
    return error


def test_a_cuda_error_of_the_device_is_a_lost_gpu():
    with pytest.raises(GpuLost, match="unspecified launch failure"), noticing_gpu_loss():
        raise cuda_error(719)


def test_a_cuda_error_of_the_program_is_not():
    illegal_address = 700
    with pytest.raises(torch.AcceleratorError), noticing_gpu_loss():
        raise cuda_error(illegal_address)
    with pytest.raises(RuntimeError, match="shape"), noticing_gpu_loss():
        raise RuntimeError("shape mismatch")


def test_the_numbers_mean_what_cuda_says_they_mean():
    library = next(file for file in metadata.files("nvidia-cuda-runtime") or [] if "libcudart.so" in file.name)
    cudart = ctypes.CDLL(str(library.locate()))
    cudart.cudaGetErrorName.restype = ctypes.c_char_p
    names = {code: cudart.cudaGetErrorName(code).decode() for code in gpu_loss._DEVICE_ERRORS}
    assert names == {
        46: "cudaErrorDevicesUnavailable",
        100: "cudaErrorNoDevice",
        214: "cudaErrorECCUncorrectable",
        220: "cudaErrorNvlinkUncorrectable",
        226: "cudaErrorContained",
        304: "cudaErrorOperatingSystem",
        719: "cudaErrorLaunchFailure",
        999: "cudaErrorUnknown",
    }


def test_a_machine_without_a_gpu_has_lost_none(tmp_path):
    assert lost_access(tmp_path / "nvidiactl") is None


def test_a_driver_that_can_be_opened_is_not_lost(tmp_path):
    (control_file := tmp_path / "nvidiactl").touch()
    assert lost_access(control_file) is None


# --- what a run and a suite do about it ---


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    train(tiny_config(data), folder)
    return folder


@pytest.fixture
def refused(monkeypatch):
    """From now on a new process of this container would find no GPU; looked for after every step."""
    monkeypatch.setattr(devices, "lost_gpu", lambda _device: "/dev/nvidiactl: operation not permitted")
    monkeypatch.setattr(train_module, "_HEARTBEAT_S", 0.0)


@pytest.mark.usefixtures("refused")
def test_a_run_whose_container_loses_the_gpu_is_saved_and_loses_nothing(data, undisturbed, tmp_path, monkeypatch):
    with pytest.raises(GpuLost, match="operation not permitted"):
        train(tiny_config(data), tmp_path)
    run = load_run(tmp_path)
    assert [row["kind"] for row in run.rows_of("incident")] == ["gpu_lost"]
    assert run.rows[-1]["saved"] is True
    assert run.rows[-1]["step"] == 1

    monkeypatch.undo()
    assert train(tiny_config(data), tmp_path)["clock"]["lost_s"] == 0
    assert (tmp_path / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()


def test_a_run_whose_gpu_fails_goes_back_to_its_last_checkpoint(data, undisturbed, tmp_path, monkeypatch):
    original = TrainStep.__call__

    def call(self, batch, learning_rate):
        if (batch.epoch, batch.position) == (2, 8):
            raise cuda_error(719)
        return original(self, batch, learning_rate)

    monkeypatch.setattr(TrainStep, "__call__", call)
    with pytest.raises(GpuLost, match="unspecified launch failure"):
        train(tiny_config(data), tmp_path)
    monkeypatch.undo()
    assert train(tiny_config(data), tmp_path)["completed"]
    assert (tmp_path / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("refused")
def test_the_command_says_so_in_a_line_and_in_its_exit_status(data, tmp_path, capsys):
    settings = [word for setting in [*tiny_settings(data), "budget.steps=5"] for word in ("--set", setting)]
    status = cli.main(["train", "paper/baseline", "--profile", "quick", "--run-dir", str(tmp_path), *settings])
    assert status == gpu_loss.EXIT_STATUS == 75
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line == (
        "vit24h: the GPU is lost (/dev/nvidiactl: operation not permitted): restart the container, or the machine, "
        "and go on"
    )


def test_a_gpu_that_is_gone_before_the_start_is_lost_and_not_replaced_by_the_cpu(monkeypatch):
    monkeypatch.setattr(devices, "lost_access", lambda: "gone")
    monkeypatch.setattr(devices.torch, "cuda", SimpleNamespace(is_available=lambda: False))
    for requested in ("auto", "cuda"):
        with pytest.raises(GpuLost):
            devices.select_device(requested)
    assert devices.select_device("cpu").type == "cpu"


def test_a_suite_does_not_begin_the_next_arm_without_a_gpu(data, tmp_path, capfd):
    begun = tmp_path / "begun"
    commands = ["raise SystemExit(75)", f"open({str(begun)!r}, 'w')"]
    runs = [
        PlannedRun(tiny_config(data, arm=arm), tmp_path / "suite" / arm, [sys.executable, "-c", command])
        for arm, command in zip(("baseline", "locality"), commands, strict=True)
    ]
    assert Suite(tmp_path / "suite", runs).run() == gpu_loss.EXIT_STATUS
    assert not begun.exists()
    assert "2 runs to do: a new start goes on from here" in capfd.readouterr().out
