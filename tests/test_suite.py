"""`vit24h suite`: arms in sequence, resumable, one failure not the end of the rest; real processes, real signals."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tiny import CURRICULUM, tiny_settings, write_images
from vit24h.config import load_config
from vit24h.errors import UserError
from vit24h.records import find_runs
from vit24h.records.folder import write_yaml
from vit24h.records.reader import read_rows
from vit24h.records.same_config import require_same_config
from vit24h.suite import Suite

ARMS = ["baseline", "locality", "curriculum", "combined"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def vit24h(tmp_path, data):
    """Starts the real command with its own runs folder and a tiny profile; `start` does not wait for its end."""
    return _Command(tmp_path, _write_profile(tmp_path, data))


class _Command:
    def __init__(self, folder: Path, profile: Path):
        self.runs = folder / "runs"
        self.profile = profile
        self.environment = {**os.environ, "VIT24H_RUNS": str(self.runs), "OMP_NUM_THREADS": "1"}

    def start(self, *words: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "vit24h", *words]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
        )

    def __call__(self, *words: str) -> subprocess.CompletedProcess:
        process = self.start(*words)
        out, err = process.communicate(timeout=180)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def suite(self, *words: str) -> list[str]:
        return ["suite", "--profile", str(self.profile), "--name", "tiny", *words]


def _write_profile(folder: Path, data: Path) -> Path:
    """The tiny settings as a profile file, six steps an arm."""
    settings: dict = {"smoke": True}
    for setting in [*tiny_settings(data), "budget.steps=6"]:
        key, _, value = setting.partition("=")
        section, _, name = key.partition(".")
        settings.setdefault(section, {})[name] = json.loads(value) if _is_json(value) else value
    curriculum = {key.partition(".")[2]: json.loads(value) for key, _, value in (s.partition("=") for s in CURRICULUM)}
    curriculum["epochs_per_stage"] = None
    settings["by_arm"] = {arm: {"curriculum": curriculum} for arm in ("curriculum", "combined")}
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(settings))  # YAML holds JSON
    return path


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _wait_for(condition, seconds=90.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


def test_the_four_arms_train_one_after_another_and_end_in_a_report(vit24h):
    first = vit24h(*vit24h.suite())
    assert first.returncode == 0, first.stderr
    runs = find_runs(vit24h.runs / "tiny")
    assert sorted(run.arm for run in runs) == sorted(ARMS)
    assert all(run.state == "finished" for run in runs)
    for arm in ARMS:
        assert f"{arm} seed 0: finished in" in first.stdout
    assert "not the paper's result" in first.stdout
    report = vit24h.runs / "tiny" / "report"
    assert list(report.glob("*.md"))
    assert list(report.glob("*.csv"))
    assert list(report.glob("*.png"))
    assert list(report.glob("*.pdf"))
    assert list(report.glob("*.html"))

    logs = {run.path: (run.path / "log.jsonl").read_bytes() for run in runs}
    second = vit24h(*vit24h.suite())
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("finished before") == 4
    assert all((path / "log.jsonl").read_bytes() == before for path, before in logs.items())

    status = vit24h("status", str(vit24h.runs / "tiny"))
    assert "4 of 4 runs finished" in status.stdout
    address = vit24h("report", str(vit24h.runs / "tiny"), "--no-notebooks", "--open").stdout
    assert address.strip() == f"open {(report / 'index.html').resolve().as_uri()}"

    evaluated = vit24h("evaluate", str(runs[0].path))
    assert f"top-1 {runs[0].result['top1']:.2f} %" in evaluated.stdout


@pytest.mark.parametrize("files", [["result.json"], []], ids=["finished", "unfinished"])
def test_a_run_of_another_configuration_is_refused_before_anything_is_trained(tmp_path, monkeypatch, files):
    monkeypatch.setenv("VIT24H_RUNS", str(tmp_path))
    planned = {"profile": "quick", "arms": ["locality", "baseline"], "seeds": [0], "data": None, "name": None}
    shorter = Suite.plan(**planned, overrides=["budget.hours=0.1", "runtime.workers=3"])
    there = shorter.runs[1]
    there.run_dir.mkdir(parents=True)
    for name in files:
        (there.run_dir / name).write_text("{}")
    (there.run_dir / "config.yaml").write_text(there.config.to_yaml())
    with pytest.raises(UserError, match=r"another configuration \(budget.hours 0.1 there, 0.17 here\)") as refused:
        Suite.plan(**planned, overrides=["budget.hours=0.17"]).run()
    assert str(there.run_dir) in str(refused.value)
    assert not (shorter.folder / "locality").exists()
    assert not (shorter.folder / "suite.json").exists()
    require_same_config(replace(there.config, runtime=replace(there.config.runtime, workers=1)), there.run_dir)


def test_a_run_of_an_earlier_version_is_told_by_the_settings_it_lacks(tmp_path):
    config = load_config("paper/baseline", profile="quick")
    earlier = config.to_dict()
    del earlier["optimizer"]["warmup_epochs"], earlier["runtime"]["stall_minutes"]
    earlier["optimizer"]["momentum"] = 0.9
    write_yaml(tmp_path / "config.yaml", earlier)
    with pytest.raises(UserError, match=r"\(optimizer.momentum 0.9 there, missing here; .*warmup_epochs missing there"):
        require_same_config(config, tmp_path)


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_suite_saves_itself_and_goes_on(vit24h, sent, status):
    long = vit24h.suite("--arms", "baseline,locality", "--set", "budget.steps=600")
    log = vit24h.runs / "tiny" / "baseline" / "seed0" / "log.jsonl"
    process = vit24h.start(*long)
    _wait_for(lambda: log.is_file() and len(read_rows(log)) > 4)
    running = vit24h("status", str(vit24h.runs / "tiny")).stdout
    assert "0 of 2 runs finished" in running
    assert re.search(r"baseline seed 0 +running", running)
    assert re.search(r"locality seed 0 +not started", running)
    process.send_signal(sent)
    out, err = process.communicate(timeout=30)  # a stop takes no longer
    assert process.returncode == status, err
    assert "2 runs to do: the same command goes on from here" in out
    rows = read_rows(log)
    assert (rows[-1]["event"], rows[-1]["reason"]) == ("end", "interrupted")
    assert not (vit24h.runs / "tiny" / "locality").exists()
    stopped = vit24h("status", str(vit24h.runs / "tiny")).stdout
    assert "not running: start the same command again and it goes on" in stopped
    assert re.search(r"baseline seed 0 +stopped", stopped)

    process = vit24h.start(*long)
    _wait_for(lambda: any(row["event"] == "resume" for row in read_rows(log)))
    process.send_signal(sent)
    process.communicate(timeout=30)
    resumed = next(row for row in read_rows(log) if row["event"] == "resume")
    assert resumed["step"] == rows[-1]["step"]
    assert resumed["clock"]["train_s"] == rows[-1]["clock"]["train_s"]
    assert resumed["clock"]["lost_s"] == 0


def test_when_the_suite_is_killed_its_arm_saves_itself_and_ends(vit24h):
    log = vit24h.runs / "tiny" / "baseline" / "seed0" / "log.jsonl"
    process = vit24h.start(*vit24h.suite("--set", "budget.steps=100000"))
    _wait_for(lambda: log.is_file() and len(read_rows(log)) > 4)
    process.kill()
    _wait_for(lambda: read_rows(log)[-1].get("reason") == "interrupted", seconds=30)
    process.communicate()


def test_one_arms_failure_is_reported_and_the_rest_still_run(vit24h, tmp_path):
    broken = tmp_path / "broken.yaml"
    # a loss that is not finite shows when the arm is under way
    broken.write_text(
        f"extends: {os.path.relpath(Path('configs/paper/baseline.yaml').resolve(), tmp_path)}\nname: broken\n"
    )
    profile = vit24h.profile.read_text().replace(
        '"by_arm": {', '"by_arm": {"broken": {"optimizer": {"learning_rate": 1.0e+30}, "budget": {"steps": 60}}, '
    )
    vit24h.profile.write_text(profile)
    done = vit24h(*vit24h.suite("--arms", f"{broken},baseline"))
    assert done.returncode == 1
    assert "lower optimizer.learning_rate" in done.stderr
    assert "FAILED: broken seed 0" in done.stderr
    assert "Traceback" not in done.stderr
    assert [run.arm for run in find_runs(vit24h.runs / "tiny") if run.state == "finished"] == ["baseline"]


def test_a_second_suite_on_the_same_folder_names_the_first(vit24h):
    log = vit24h.runs / "tiny" / "baseline" / "seed0" / "log.jsonl"
    first = vit24h.start(*vit24h.suite("--set", "budget.steps=100000"))
    _wait_for(log.is_file)
    second = vit24h(*vit24h.suite())
    first.terminate()
    first.communicate(timeout=30)
    assert second.returncode == 2
    assert f"process {first.pid} is at work there" in second.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["suite", "--data", "/nowhere"], "/nowhere: does not exist"),
        (["suite"], "give the folder that has train/ and val/ with --data DIR"),
        (["suite", "--quick", "--set", "model.image_size=50"], "a multiple of model.patch_size"),
        (["suite", "--quick", "--set", "optimizer.lr=1e-3"], "the nearest valid key is optimizer.learning_rate"),
        (["suite", "--quick", "--set", "optimizer.learning_rate=1e-3"], "write 0.001"),
        (["suite", "--quick", "--arms", "baselin"], "--arms: no arm baselin; did you mean baseline?"),
        (["suite", "--quick", "--profile", "full"], "does not go with --profile full"),
        (["suite", "--arms", ","], "at least one arm and one seed"),
        (["train", "paper/combined", "--profile", "full"], "give the folder that has train/ and val/ with --data DIR"),
        (["evaluate", "nowhere"], "nowhere/config.yaml: cannot be read"),
        (["report", "nowhere"], "nowhere: no such folder"),
        (["report", ".", "--embed", "nowhere.md"], "--embed nowhere.md: cannot be read and written"),
        (["export", "nowhere", "elsewhere"], "nowhere: no such folder"),
        (["status", "nowhere"], "nowhere: no suite has been started there"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_status_2(vit24h, words, expected):
    done = vit24h(*words)
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_unwritable_place_for_runs_is_named(vit24h, tmp_path):
    (tmp_path / "a file").write_text("")
    vit24h.environment["VIT24H_RUNS"] = str(tmp_path / "a file")
    done = vit24h(*vit24h.suite())
    assert done.returncode == 2
    assert "cannot write there" in done.stderr
    assert "VIT24H_RUNS" in done.stderr


@pytest.mark.parametrize("command", [[], ["train"], ["suite"], ["evaluate"], ["report"], ["status"], ["export"]])
def test_every_command_explains_itself_with_an_example(vit24h, command):
    done = vit24h(*command, "--help")
    assert done.returncode == 0
    assert not command or "example: vit24h" in done.stdout
