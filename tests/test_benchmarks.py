"""The benchmarks run from end to end in small, and a machine without a GPU is told so."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vit24h import paths

BENCHMARKS = paths.project_root() / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import interleaved  # noqa: E402 - benchmarks/ is no package
import step  # noqa: E402


def run(*command, **environment):
    return subprocess.run(
        command,
        env={**os.environ, "VIT24H_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    done = run(str(BENCHMARKS / "gpu.sh"), "--out", str(tmp_path))
    assert done.returncode == 2
    assert "no GPU found" in done.stderr
    assert "--rehearse" in done.stderr


def test_an_unknown_option_is_refused():
    done = run(str(BENCHMARKS / "gpu.sh"), "--dat", "/data")
    assert done.returncode == 2
    assert "--dat: not an option" in done.stderr


@pytest.mark.slow
def test_the_whole_of_it_can_be_rehearsed(tmp_path):
    done = run(str(BENCHMARKS / "gpu.sh"), "--rehearse", "--out", str(tmp_path), VIT24H_CACHE=str(tmp_path / "cache"))
    # The doctor may find this machine wanting; all else goes well anywhere.
    assert [line for line in done.stderr.splitlines() if not line.startswith("failed: doctor")] == [], done.stdout[
        -3000:
    ]
    for name in ("step", "compile_times", "end_to_end"):
        text = (tmp_path / f"{name}.json").read_text()
        assert json.loads(text)["environment"]["packages"]["torch"] == torch.__version__.partition("+")[0]
        assert str(Path.home()) not in text
        assert str(tmp_path) not in text
        assert os.uname().nodename not in text
    record = json.loads((tmp_path / "step.json").read_text())
    rows = {row["contender"]: row for row in record["rows"]}
    assert {"baseline", "timm", "locality", "locality, shifted"} <= rows.keys()
    assert all(0 < row["share_of_peak"] < 1 for row in rows.values())
    assert [len(part["flops_per_s"]) for part in record["matrix_peak"]["rounds"]] == [2, 2]
    assert rows["baseline"]["times_as_fast_as"]["timm"] > 0
    assert (tmp_path / "step.png").stat().st_size > 1000
    assert [row["image_size"] for row in json.loads((tmp_path / "compile_times.json").read_text())["empty_cache"]] == [
        16,
        32,
        48,
        64,
    ]
    together = json.loads((tmp_path / "end_to_end.json").read_text())["rows"][0]
    assert 0 < together["share"] < 2


def test_a_part_that_fails_is_named_and_the_others_run(tmp_path):
    """With a python that has torch and nothing of the project, every part fails, and each is named."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\nexit 3\n')
    python.chmod(0o755)
    done = run(str(BENCHMARKS / "gpu.sh"), "--rehearse", "--out", str(tmp_path), VIT24H_PYTHON=str(python))
    assert done.returncode == 1
    for part in ("doctor", "tests", "step", "compile_times", "end_to_end"):
        assert f"failed: {part}: exit status 3" in done.stderr


def test_calls_are_timed_in_turns(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(interleaved.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(interleaved, "wait_for_device", lambda: None)
    order = []

    def call(name, seconds):
        def act():
            order.append(name)
            # what else the machine does makes everything slower in the second half
            now[0] += seconds * (2 if len(order) > 8 else 1)

        return act

    timings = interleaved.time_in_turns({"one": call("one", 1.0), "two": call("two", 3.0)}, rounds=6, round_s=0.1)
    assert order == ["one", "two"] + ["one", "two", "two", "one"] * 3
    assert interleaved.median_ratio(timings["one"], timings["two"]) == pytest.approx(3.0, rel=0.5)
    assert statistics.median(timings["one"].rounds) == timings["one"].median_s


@pytest.mark.parametrize(
    ("step_s", "product_s"),
    [
        ([1.0, 1.0, 1.0], [0.5, 0.5, 0.5]),
        ([1.0, 1.0, 1.0], [9.0, 0.5, 0.5]),  # a busy moment while the product had its turn
        ([1.0, 3.0, 4.0], [0.5, 1.5, 2.0]),  # a machine that gets slower
    ],
)
def test_a_share_of_the_peak_is_one_of_the_same_round(step_s, product_s):
    times = interleaved.Timing(step_s), interleaved.Timing(product_s)
    assert step.share_of_peak(times[0], 60.0, times[1], 100.0) == pytest.approx(0.3)


def test_every_arm_and_way_is_measured_at_the_wanted_sizes_first():
    parts = list(step.plan_of([224, 64, 32, 96], [64, None], step.GPU))
    assert [(size, batch) for size, batch, _ in parts[::2]] == [
        (224, 64),
        (64, 64),
        (32, 64),
        (224, None),
        (64, None),
        (32, None),
        (96, 64),
        (96, None),
    ]
    assert {one.name for _, _, part in parts[:2] for one in part} == {one.name for one in step.GPU}
