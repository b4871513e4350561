"""Trust: a record that keeps the rules is verified, whatever happened to the run; one that was touched is found out.

The record is made up (`benchmark_record.py`): a day on a GPU, written through the real folder, hash chain and clock.
"""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import vit24h
from benchmark_record import GPU, IMAGENET, cover_tracks, edit_config, edit_json, edit_rows, write_benchmark_record
from tiny import tiny_config, write_images
from vit24h.cli import main
from vit24h.config import load_config
from vit24h.engine.interruption import Interrupted
from vit24h.engine.step import TrainStep
from vit24h.engine.train import train
from vit24h.errors import UserError
from vit24h.records import RunFolder
from vit24h.records.chain import config_fingerprint, file_sha256, first_break, link_of
from vit24h.records.rules import RULES
from vit24h.records.verify import verify
from vit24h.report.leaderboard import leaderboard

PACKING = {"short_side": 256, "quality": 90, "source_fingerprint": "ab" * 32, "bytes": 36_100_000_000}
RAW_PACKING = {"short_side": 256, "raw": True, "source_fingerprint": "ab" * 32, "bytes": 348_000_000_000}
STOPS = {3: "signal", 7: "kill"}


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    return write_benchmark_record(tmp_path_factory.mktemp("full") / "combined" / "seed0", stops=dict(STOPS))


@pytest.fixture
def record(untouched, tmp_path):
    shutil.copytree(untouched, tmp_path / "seed0")
    return tmp_path / "seed0"


def found(path, rule, **options):
    return next(finding for finding in verify(path, **options).findings if finding.rule == rule)


def broken(path):
    return {finding.rule: finding.reason for finding in verify(path).broken}


# -- a record that keeps the rules ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", [{}, STOPS, {1: "kill", 2: "kill", 28: "signal"}], ids=str)
def test_a_day_on_one_gpu_is_a_benchmark_record_whatever_interrupted_it(stops, tmp_path):
    write_benchmark_record(tmp_path, stops=dict(stops))
    verification = verify(tmp_path)
    assert verification.holds, verification.to_text()
    assert {finding.verdict for finding in verification.findings} == {"ok"}
    lost = found(tmp_path, "lost time").reason
    assert ("none" in lost) if not stops else f"in {len(stops)} interruptions" in lost


def test_a_budget_that_counts_everything_may_evaluate_after_its_time_is_up(tmp_path):
    write_benchmark_record(tmp_path, settings=("budget.counts=all",))
    assert verify(tmp_path).holds, verify(tmp_path).to_text()
    assert "24.000 h of training, evaluation, checkpoints and set-up" in found(tmp_path, "budget").reason


def test_a_record_of_text_alone_is_enough(record):
    (record / "model.safetensors").unlink()
    verification = verify(record)
    assert verification.holds
    assert found(record, "weights").verdict == "not checkable"


def test_where_the_data_lie_and_how_many_workers_read_them_may_be_taken_out_before_publishing(record):
    edit_config(record, lambda config: (config["data"].update(path=None), config["runtime"].update(workers=3)))
    assert verify(record).holds


def test_another_gpu_after_a_resume_is_stated(record):
    def move(rows):
        resume = next(row for row in rows if row["event"] == "resume")
        resume["environment_changes"] = {"gpu": {**GPU, "name": "NVIDIA A100-SXM4-80GB"}}

    edit_rows(record, move)
    cover_tracks(record)
    assert "NVIDIA H200, then NVIDIA A100-SXM4-80GB" in found(record, "one GPU").reason
    assert verify(record).holds


def test_the_digest_is_what_sha256sum_prints_of_result_json(record):
    assert verify(record).digest == file_sha256(record / "result.json")


# -- the hash chain -------------------------------------------------------------------------------------------------


def log_lines(folder):
    return (folder / "log.jsonl").read_bytes().splitlines(keepends=True)


def swap(lines, i, j):
    lines[i], lines[j] = lines[j], lines[i]


LOG_TAMPERS = {
    "a figure edited": (lambda lines: lines.__setitem__(9, lines[9].replace(b"0.000125", b"0.000126")), 10),
    "a space added": (lambda lines: lines.__setitem__(4, lines[4].replace(b"{", b"{ ", 1)), 5),
    "a row removed": (lambda lines: lines.pop(20), 21),
    "the first row removed": (lambda lines: lines.pop(0), 1),
    "rows swapped": (lambda lines: swap(lines, 10, 11), 11),
    "a row copied": (lambda lines: lines.insert(30, lines[20]), 31),
    "a row of one's own": (lambda lines: lines.insert(30, b'{"event": "eval", "top1": 99}\n'), 31),
    "a link edited": (lambda lines: lines.__setitem__(7, lines[7][:-5] + b'00"}\n'), 8),
}


@pytest.mark.parametrize("tamper", LOG_TAMPERS)
def test_whatever_is_done_to_a_row_shows_at_its_line(tamper, record):
    do, line = LOG_TAMPERS[tamper]
    lines = log_lines(record)
    do(lines)
    (record / "log.jsonl").write_bytes(b"".join(lines))
    assert f"log.jsonl line {line} " in broken(record)["hash chain"]


def test_a_moved_row_is_told_from_an_edited_one(record):
    lines = log_lines(record)
    swap(lines, 10, 11)
    assert "line 11 was written after line 12: rows were moved" in first_break([line[:-1] for line in lines])


def test_rows_cut_off_the_end_show(record):
    (record / "log.jsonl").write_bytes(b"".join(log_lines(record)[:-1]))
    assert {"fingerprints", "finished"} <= broken(record).keys()
    (record / "log.jsonl").write_bytes(b"".join(log_lines(record))[:-30])
    assert "half a row" in broken(record)["hash chain"]


def test_the_chain_goes_on_when_the_log_is_opened_again_also_after_a_kill_cut_a_row(tmp_path):
    for number in range(3):
        with RunFolder(tmp_path) as folder:
            folder.append({"event": "stage", "number": number})
            folder.append({"event": "epoch", "train_loss": math.nan})
        with (tmp_path / "log.jsonl").open("ab") as log:
            log.write(b'{"event": "epo')
    with RunFolder(tmp_path) as folder:
        lines = [line[:-1] for line in log_lines(tmp_path)]
        assert folder.rows == len(lines) == 6
        assert folder.link == link_of(lines[-1])
    assert first_break(lines) is None


def test_rows_that_waited_for_the_disk_keep_their_places_in_the_chain(tmp_path, monkeypatch):
    with RunFolder(tmp_path) as folder:
        folder.append({"event": "start"})
        with monkeypatch.context() as full:
            full.setattr(os, "fsync", _no_space)
            assert not folder.append({"event": "stage"})
            assert not folder.append({"event": "incident"})
        assert folder.append({"event": "epoch"})
    lines = [line[:-1] for line in log_lines(tmp_path)]
    assert [json.loads(line)["event"] for line in lines] == ["start", "stage", "incident", "epoch"]
    assert first_break(lines) is None


def _no_space(_descriptor):
    raise OSError(28, "No space left on device")


# -- edits without covering the tracks ------------------------------------------------------------------------------


def flat(values, prefix=()):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, (*prefix, key))
        else:
            yield (*prefix, key)


def changed(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return value + "x" if isinstance(value, str) else "x" if value is None else []


def set_in(values, path, change):
    for key in path[:-1]:
        values = values[key]
    values[path[-1]] = change(values[path[-1]])


CONFIG_FIELDS = [
    path
    for path in flat(load_config("paper/combined", profile="full").to_dict())
    if path[0] != "runtime" and path != ("data", "path")
]


def test_every_field_of_the_configuration_is_under_its_fingerprint(record):
    for path in CONFIG_FIELDS:
        before = (record / "config.yaml").read_bytes()
        edit_config(record, lambda config, path=path: set_in(config, path, changed))
        assert "fingerprints" in broken(record), path
        (record / "config.yaml").write_bytes(before)
    assert len(CONFIG_FIELDS) > 50


def test_every_field_of_the_environment_is_under_its_fingerprint(record):
    before = (record / "environment.json").read_bytes()
    for path in flat(json.loads(before)):
        edit_json(record / "environment.json", lambda content, path=path: set_in(content, path, changed))
        assert "fingerprints" in broken(record), path
        (record / "environment.json").write_bytes(before)


def test_every_field_of_the_result_is_held_against_the_rest(record):
    """`result.json` has no fingerprint but the published digest, so each of its fields must be found out by itself."""
    before = (record / "result.json").read_bytes()
    for path in flat(json.loads(before)):
        edit_json(record / "result.json", lambda content, path=path: set_in(content, path, changed))
        assert broken(record), path
        (record / "result.json").write_bytes(before)


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "log.jsonl"])
def test_a_missing_file_is_named(name, record):
    (record / name).unlink()
    assert f"{name} is missing" in broken(record)["files"]


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "log.jsonl", "result.json"])
@pytest.mark.parametrize("content", [b"{", b"[]\n", b"\xff\xfe\n", b"\x00"])
def test_a_damaged_file_is_named(name, content, record):
    (record / name).write_bytes(content)
    assert name in broken(record)["files"]
    assert not verify(record).holds


def test_a_run_without_a_result_is_unfinished_and_breaks_nothing_else(record):
    (record / "result.json").unlink()
    assert broken(record) == {"finished": "unfinished: no result.json"}
    assert verify(record).breaches(unfinished_counts=False) == []


def test_other_weights_are_noticed(record):
    (record / "model.safetensors").write_bytes(b"better ones")
    assert "the run saved" in broken(record)["weights"]


# -- forgeries with fingerprints and links made new: what the rules themselves find -----------------------------------


def last(rows, event):
    return [row for row in rows if row["event"] == event][-1]


def scale_clock(rows, factor):
    for row in rows:
        row["clock"] = {key: seconds * factor for key, seconds in row["clock"].items()}
        if row["event"] == "epoch":
            row["epoch_s"] *= factor


def best_epoch(folder):
    """The best evaluation of the log as the result: here one in the middle, made better than the last."""
    edit_rows(folder, lambda rows: [r for r in rows if r["event"] == "eval"][15].update(top1=75.0, top5=90.0))
    edit_json(folder / "result.json", lambda result: result.update(top1=75.0, top5=90.0))


def on_rows(edit):
    return lambda folder: edit_rows(folder, edit)


def on_result(**changes):
    return lambda folder: edit_json(folder / "result.json", lambda result: result.update(changes))


def in_result(section, **changes):
    return lambda folder: edit_json(folder / "result.json", lambda result: result[section].update(changes))


def in_row(index, **changes):
    return on_rows(lambda rows: rows[index].update(changes))


def larger_batch(rows):
    for row in rows:
        row["batch_size"] *= 2


def on_environment(edit):
    return lambda folder: edit_json(folder / "environment.json", edit)


def on_config(section, **changes):
    return lambda folder: edit_config(folder, lambda config: config[section].update(changes))


def on_dataset(**changes):
    return on_environment(lambda environment: environment["dataset"].update(changes))


def on_resume(**changes):
    return on_rows(lambda rows: last(rows, "resume")["environment_changes"].update(changes))


def all_of(*edits):
    def do(folder):
        for edit in edits:
            edit(folder)

    return do


def more_hours(folder):
    edit_rows(folder, lambda rows: scale_clock(rows, 1.5))

    def scale(result):
        result["clock"] = {key: seconds * 1.5 for key, seconds in result["clock"].items()}
        result["train_hours"] = result["clock"]["train_s"] / 3600

    edit_json(folder / "result.json", scale)


def drop(event, index):
    def edit(rows):
        rows.remove([row for row in rows if row["event"] == event][index])

    return on_rows(edit)


def no_time_lost(rows):
    for row in rows:
        row["clock"]["wall_s"] -= row["clock"]["lost_s"]
        row["clock"]["lost_s"] = 0.0


def nudge(event, index, path, by):
    return on_rows(lambda rows: set_in([r for r in rows if r["event"] == event][index], path, lambda value: value + by))


FORGERIES = {
    "best epoch": (best_epoch, "last weights", "top1 75.0 is that of log.jsonl line"),
    "top-1 of nowhere": (on_result(top1=80.0), "last weights", "that of no evaluation"),
    "ema as the result": (on_result(top1=70.0, top5=85.0), "last weights", "the last weights' is"),
    "NaN top-1": (on_result(top1=math.nan), "evaluation", "top1 is NaN"),
    "NaN top-1 in the log too": (
        all_of(on_result(top1=math.nan), on_rows(lambda rows: last(rows, "eval").update(top1=math.nan))),
        "evaluation",
        "top1 is NaN",
    ),
    "top-1 that is no number of images": (
        all_of(on_result(top1=76.1234), on_rows(lambda rows: last(rows, "eval").update(top1=76.1234))),
        "evaluation",
        "no number of images out of 50,000",
    ),
    "top-1 above top-5": (
        all_of(on_result(top1=99.0), on_rows(lambda rows: last(rows, "eval").update(top1=99.0))),
        "evaluation",
        "more than top5",
    ),
    "evaluated on fewer images": (
        all_of(on_result(images=25_000), on_rows(lambda rows: last(rows, "eval").update(images=25_000))),
        "evaluation",
        "on 25,000 of 50,000 images",
    ),
    "last evaluation removed": (drop("eval", -1), "last weights", "the last evaluation is of step"),
    "evaluated before the end": (nudge("eval", -1, ("step",), -1000), "samples", "runs backwards"),
    "evaluated at another size": (on_config("model", image_size=256), "evaluation", "256 px, not 224"),
    "evaluated after another resize": (on_config("data", eval_resize_ratio=1.0), "evaluation", "not to 256 px"),
    "more hours": (more_hours, "budget", "36.000 h of the counted phases, more than 24 h"),
    "hours above the rule": (
        all_of(on_config("budget", hours=36.0), in_result("budget", hours=36.0)),
        "budget",
        "budget 36 h, not 24 h",
    ),
    "a budget of epochs": (on_config("budget", hours=None, epochs=30), "budget", "budget 30 epochs, not 24 h"),
    "another budget in the result": (
        in_result("budget", counts="all"),
        "result",
        "budget is a section",
    ),
    "ended before its budget": (on_rows(lambda rows: scale_clock(rows, 0.5)), "budget", "not by its budget"),
    "phases that do not add up": (nudge("epoch", 3, ("clock", "train_s"), -900), "clock", "add up to"),
    "a clock that runs backwards": (
        all_of(nudge("epoch", 3, ("clock", "train_s"), -9000), nudge("epoch", 3, ("clock", "wall_s"), -9000)),
        "clock",
        "runs backwards",
    ),
    "training time moved to set-up": (
        all_of(nudge("end", -1, ("clock", "train_s"), 3600), nudge("end", -1, ("clock", "wall_s"), 3600)),
        "budget",
        "more than 24 h",
    ),
    "epochs longer than the clock": (nudge("epoch", 3, ("epoch_s",), 600), "clock", "its epochs took"),
    "a clock of NaN": (nudge("epoch", 3, ("clock", "eval_s"), math.nan), "clock", "eval_s is NaN"),
    "a resume that gives time back": (
        all_of(nudge("resume", 1, ("clock", "train_s"), -5000), nudge("resume", 1, ("clock", "lost_s"), 5000)),
        "clock",
        "its checkpoint was saved between",
    ),
    "lost time denied": (
        all_of(on_rows(no_time_lost), in_result("clock", lost_s=0.0)),
        "lost time",
        "are in no phase and not in lost_s",
    ),
    "lost time left out of the result": (
        in_result("clock", lost_s=0.0),
        "lost time",
        "result.json states 0.0 s lost",
    ),
    "two processes": (on_environment(lambda e: e.update(processes=2)), "one GPU", "2 processes, not one GPU"),
    "two processes after a resume": (on_resume(processes=4), "one GPU", "resumed with 4 processes"),
    "no GPU": (on_environment(lambda e: e.update(gpu=None)), "one GPU", "no GPU"),
    "processes not said": (on_environment(lambda e: e.pop("processes")), "one GPU", "processes is missing"),
    "more training images": (on_dataset(train_images=14_197_122), "dataset", "14,197,122 + 50,000 images"),
    "fewer validation images": (on_dataset(val_images=10_000), "dataset", "not ImageNet-1k's"),
    "fewer classes": (on_dataset(classes=100), "dataset", "100 classes"),
    "drawn images": (on_config("data", synthetic=True), "dataset", "drawn images"),
    "another dataset after a resume": (
        on_resume(dataset={**IMAGENET, "fingerprint": "0" * 64}),
        "dataset",
        "resumed with another dataset",
    ),
    "no fingerprint of the dataset": (on_dataset(fingerprint="none"), "dataset", "expected a SHA-256"),
    "packing of text": (on_dataset(packing="yes"), "dataset", 'packing is "yes", expected a section'),
    "packing without its size": (on_dataset(packing={**PACKING, "bytes": None}), "dataset", "bytes is null, expected"),
    "packing of another source": (on_dataset(packing={**PACKING, "source_fingerprint": 1}), "dataset", "a SHA-256"),
    "other code after a resume": (on_resume(code={"fingerprint": "0" * 64}), "one code", "resumed with other code"),
    "no fingerprint of the code": (on_environment(lambda e: e.pop("code")), "one code", "code is missing"),
    "a smoke run": (lambda folder: edit_config(folder, lambda c: c.update(smoke=True)), "full run", "smoke run"),
    "begun in the middle": (in_row(0, step=5000), "from scratch", "starts at step 5,000"),
    "no start": (in_row(0, event="stage"), "from scratch", "not the start"),
    "two starts": (in_row(5, event="start"), "from scratch", "a second start"),
    "more samples than steps": (nudge("eval", 5, ("samples_seen",), 64), "samples", "samples in"),
    "a larger batch than done": (on_rows(larger_batch), "samples", "samples in"),
    "an epoch left out": (drop("epoch", 4), "samples", "were completed"),
    "steps that run backwards": (nudge("epoch", 4, ("step",), -30_000), "samples", "runs backwards"),
    "a resume ahead of its checkpoint": (
        all_of(nudge("resume", 1, ("step",), 100), nudge("resume", 1, ("samples_seen",), 6400)),
        "samples",
        "its checkpoint was saved at",
    ),
    "epochs of another length": (on_config("data", epoch_multiple=1000), "samples", "do not follow from its images"),
    "fewer epochs in the result": (on_result(epochs=12.5), "result", "epochs is 12.5"),
    "fewer steps in the result": (on_result(steps=100), "result", "steps is 100"),
    "another arm's name": (on_result(name="baseline"), "result", 'name is "baseline"'),
    "another seed": (on_result(seed=5), "result", "seed is 5"),
    "a smaller model in the result": (on_result(parameters=5_000_000), "result", "parameters is 5000000"),
    "incidents left out": (in_row(12, event="incident", kind="x"), "result", "incidents is 0"),
    "not completed": (on_result(completed=False), "finished", "completed is false"),
    "the end left out": (drop("end", -1), "finished", "is not the end of a finished run"),
    "a failed end": (in_row(-1, reason="failed"), "finished", "is not the end"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forger_who_makes_every_link_new_is_found_out_by_what_he_changed(name, record):
    forge, rule, words = FORGERIES[name]
    assert verify(record).holds
    forge(record)
    cover_tracks(record)
    reasons = broken(record)
    assert "hash chain" not in reasons
    assert "fingerprints" not in reasons
    assert words in reasons.get(rule, "not found out"), reasons


def test_covering_tracks_is_possible_where_nothing_was_published(record):
    """The limit that BENCHMARK.md states: a forgery that agrees with itself cannot be told from the record alone."""
    published = verify(record).digest
    first_link = link_of(log_lines(record)[0][:-1])
    better = 100 * (40_000 / 50_000)

    def improve(rows):
        last(rows, "eval").update(top1=better)

    edit_rows(record, improve)
    on_result(top1=better)(record)
    cover_tracks(record)
    assert verify(record).holds
    assert not verify(record, published=[published]).holds
    # a start published before the run still stands, and binds its configuration, environment and code
    assert verify(record, published=[first_link[:16]]).holds


def test_what_was_published_is_recognised(record):
    digest, link = verify(record).digest, link_of(log_lines(record)[10][:-1])
    assert found(record, "published", published=[digest]).reason.endswith("is the digest")
    assert "line 11" in found(record, "published", published=[link]).reason
    assert found(record, "published", published=["0" * 64]).verdict == "broken"
    with pytest.raises(UserError, match="16 to 64 hexadecimal digits"):
        verify(record, published=["abc"])


def test_a_machine_whose_clock_was_set_is_no_breach_but_is_stated(record):
    def set_clock(rows):
        for row in rows[30:]:
            row["time"] = row["time"].replace("2026-01-01", "2026-01-03")

    edit_rows(record, set_clock)
    cover_tracks(record)
    assert verify(record).holds
    assert "the machine's was set, or it slept" in found(record, "time stamps").reason


def test_every_rule_can_be_broken_and_is_tested_here():
    tested = {rule for _, rule, _ in FORGERIES.values()}
    elsewhere = {"files", "hash chain", "fingerprints", "weights", "time stamps"}
    assert tested | elsewhere == set(RULES)


# -- real runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    torch.set_num_threads(1)
    return write_images(tmp_path_factory.mktemp("images"))


# What a small run on a CPU breaks, and nothing else.
SMALL = {"full run", "dataset", "one GPU", "budget", "evaluation"}


def test_a_real_run_breaks_only_the_rules_that_its_size_breaks(data, tmp_path):
    train(tiny_config(data), tmp_path)
    assert broken(tmp_path).keys() == SMALL
    assert all(finding.verdict != "not checkable" for finding in verify(tmp_path).findings)


def test_a_real_run_that_was_stopped_and_killed_keeps_its_chain_and_its_clock(data, tmp_path, monkeypatch):
    original = TrainStep.__call__

    def stop_at(step, signal_number):
        def call(self, batch, learning_rate):
            loss = original(self, batch, learning_rate)
            if (batch.epoch * 24 + batch.position) // 8 + 1 == step:
                os.kill(os.getpid(), signal_number)
            return loss

        monkeypatch.setattr(TrainStep, "__call__", call)

    config = tiny_config(data)
    stop_at(5, signal.SIGTERM)
    with pytest.raises(Interrupted):
        train(config, tmp_path)
    if (child := os.fork()) == 0:  # the same, killed with -9 in a step
        stop_at(10, signal.SIGKILL)
        train(config, tmp_path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    monkeypatch.undo()
    train(config, tmp_path)
    assert broken(tmp_path).keys() == SMALL
    assert "in 2 interruptions" in found(tmp_path, "lost time").reason


def test_weights_are_evaluated_again_and_compared(data, tmp_path, capsys):
    train(tiny_config(data, arm="baseline", steps=3), tmp_path / "run")
    command = ["verify", str(tmp_path / "run"), "--data", str(data)]
    assert main(command) == 1  # it is a small run
    told = capsys.readouterr().out
    assert "ok      re-evaluation" in told
    assert "ok      dataset here" in told

    edit_json(tmp_path / "run" / "result.json", lambda result: result.update(top1=75.0, top5=100.0))
    other = write_images(tmp_path / "other", train=9)
    assert main([*command[:-1], str(other)]) == 1
    told = capsys.readouterr().out
    assert "broken  re-evaluation" in told
    assert "broken  dataset here" in told

    (tmp_path / "run" / "model.safetensors").unlink()
    assert main(command) == 1
    assert "not checkable  re-evaluation" in capsys.readouterr().out


def test_verifying_needs_no_torch():
    code = "import sys, vit24h.records.verify, vit24h.report.leaderboard; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- fingerprints ---------------------------------------------------------------------------------------------------


def test_a_configuration_has_the_fingerprint_of_its_file():
    for profile in ("full", "quick", "mini"):
        config = load_config("paper/combined", profile=profile)
        assert config_fingerprint(yaml.safe_load(config.to_yaml())) == config_fingerprint(config.to_dict())


def test_the_code_has_another_fingerprint_when_one_character_of_it_is_another(tmp_path):
    """Of a copy of the package, so that nothing of the real one is touched."""
    package = shutil.copytree(Path(vit24h.__file__).parent, tmp_path / "vit24h")
    ask = "from vit24h.records.environment import code_fingerprint; print(code_fingerprint())"

    def fingerprint():
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    first = fingerprint()
    (package / "report" / "arms.py").write_text("# what only reads records has no part in them\n")
    assert fingerprint() == first
    with (package / "schedules.py").open("a") as source:
        source.write("#")
    assert fingerprint() != first


# -- the command and the leaderboard ---------------------------------------------------------------------------------


def test_the_command_prints_every_rule_and_succeeds_only_when_all_hold(record, capsys):
    assert main(["verify", str(record)]) == 0
    told = capsys.readouterr().out
    for rule in RULES:
        assert f"  {rule}  " in told
    assert "=> a benchmark record" in told
    assert verify(record).digest in told

    on_result(top1=80.0)(record)
    assert main(["verify", str(record)]) == 1
    assert "=> outside the benchmark: breaks last weights" in capsys.readouterr().out


def test_the_command_takes_a_folder_of_records(untouched, tmp_path, capsys):
    for seed in (0, 1):
        shutil.copytree(untouched, tmp_path / "suite" / f"seed{seed}")
    (tmp_path / "suite" / "seed1" / "result.json").unlink()
    assert main(["verify", str(tmp_path / "suite")]) == 1
    assert "1 of 2 records keep every rule" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "suite"), "--published", "0" * 64]) == 2
    assert main(["verify", str(tmp_path / "nowhere")]) == 2
    assert "not a run's record" in capsys.readouterr().err


@pytest.fixture(scope="module")
def board_folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # fourteen records of a hundred rows: no need to wait for the disk
        return _write_board(tmp_path_factory.mktemp("board"))


def test_a_record_says_how_its_images_were_packed(tmp_path):
    for name, packing, words in (
        ("jpeg", PACKING, "; packed: short side 256 px, JPEG quality 90, 36.1 GB, of the folder of fingerprint abab"),
        ("raw", RAW_PACKING, "; packed: short side 256 px, raw pixels, 348.0 GB"),
        ("folder", None, ""),
    ):
        write_benchmark_record(tmp_path / name, dataset={**IMAGENET, "packing": packing})
        assert broken(tmp_path / name) == {}
        reason = found(tmp_path / name, "dataset").reason
        assert words in reason and ("packed" in reason) == bool(words)


def _write_board(folder):
    for seed, top1 in enumerate((72.0, 72.3, 71.8)):
        write_benchmark_record(folder / f"full/combined/seed{seed}", seed=seed, top1=top1)
    for seed, top1 in enumerate((71.9, 72.1)):
        write_benchmark_record(folder / f"full/locality/seed{seed}", seed=seed, arm="locality", top1=top1)
    for seed, top1 in enumerate((70.0, 70.1)):
        write_benchmark_record(folder / f"full/curriculum/seed{seed}", seed=seed, arm="curriculum", top1=top1)
    write_benchmark_record(folder / "full/baseline/seed0", arm="baseline", top1=66.0)
    a100 = {**GPU, "name": "NVIDIA A100-SXM4-80GB"}
    write_benchmark_record(folder / "a100/baseline/seed0", arm="baseline", top1=61.0, gpu=a100)
    small = {**IMAGENET, "train_images": 24_000, "val_images": 5_000, "classes": 100}
    write_benchmark_record(folder / "mini/baseline/seed0", arm="baseline", top1=40.0, dataset=small)
    smoke = write_benchmark_record(folder / "quick/baseline/seed0", arm="baseline", top1=41.0)
    edit_config(smoke, lambda config: config.update(smoke=True))
    cover_tracks(smoke)
    unfinished = write_benchmark_record(folder / "full/localvit/seed0", arm="localvit", top1=42.0)
    (unfinished / "result.json").unlink()
    damaged = write_benchmark_record(folder / "full/localvit/seed1", arm="localvit", top1=43.0)
    (damaged / "log.jsonl").write_text("nonsense\n")
    no_config = write_benchmark_record(folder / "full/localvit/seed2", arm="localvit", top1=44.0)
    (no_config / "config.yaml").unlink()
    return folder


def test_verified_records_are_ranked_for_each_gpu_by_the_mean_over_seeds(board_folder):
    a100, h200 = (block.split("\n\n")[0] for block in leaderboard(board_folder).to_text().split("NVIDIA ")[1:])
    assert [line.split("  ")[0] for line in a100.splitlines()[4:-1]] == ["(1)"]
    ranking = [re.split(r" {2,}", line) for line in h200.splitlines()[4:-1]]
    assert [(rank, entry, top1) for rank, entry, _, top1, *_ in ranking] == [
        ("1 =", "Combined", "72.03 ± 0.25 (n=3)"),
        ("1 =", "Locality", "72.00 ± 0.14 (n=2)"),  # 0.03 apart: no more than two standard errors
        ("3", "Curriculum", "70.05 ± 0.07 (n=2)"),
        ("(4)", "Baseline", "66.00 (n=1)"),
    ]


def test_every_record_outside_the_rules_is_shown_with_the_rule_and_none_is_dropped(board_folder):
    board = leaderboard(board_folder)
    assert len(board.verified) == 9
    reasons = {
        found.path.relative_to(board_folder).as_posix(): {finding.rule: finding.reason for finding in found.broken}
        for found in board.breaches
    }
    assert reasons.keys() == {
        "mini/baseline/seed0",
        "quick/baseline/seed0",
        "full/localvit/seed0",
        "full/localvit/seed1",
        "full/localvit/seed2",
    }
    assert reasons["mini/baseline/seed0"]["dataset"] == "24,000 + 5,000 images, not ImageNet-1k's"
    assert "full run" in reasons["quick/baseline/seed0"]
    assert reasons["full/localvit/seed0"] == {"finished": "unfinished: no result.json"}
    assert "log.jsonl line 1: damaged" in reasons["full/localvit/seed1"]["files"]
    assert "config.yaml is missing" in reasons["full/localvit/seed2"]["files"]
    for text in (board.to_text(), board.to_markdown()):
        for name in reasons:
            assert name in text
        assert "9 of 14 records keep every rule" in text


def test_the_leaderboard_command_writes_markdown_beside_the_terminal(board_folder, tmp_path, capsys):
    assert main(["leaderboard", str(board_folder), "--markdown", str(tmp_path / "board.md")]) == 0
    assert "72.03 ± 0.25 (n=3)" in capsys.readouterr().out
    assert "| 1 = | Combined | full | 72.03 ± 0.25 (n=3) |" in (tmp_path / "board.md").read_text()
    assert main(["leaderboard", str(tmp_path)]) == 2
    assert main(["leaderboard", str(tmp_path / "nowhere")]) == 2
    assert main(["leaderboard", str(board_folder), "--markdown", str(tmp_path / "no" / "board.md")]) == 2


def test_a_copied_record_is_no_second_seed(untouched, tmp_path):
    shutil.copytree(untouched, tmp_path / "seed0")
    copy = shutil.copytree(untouched, tmp_path / "seed1")
    edit_config(copy, lambda config: config.update(seed=1))
    edit_json(copy / "environment.json", lambda environment: environment.update(seed=1))
    on_result(seed=1)(copy)
    cover_tracks(copy)
    assert verify(copy).holds
    (copied,) = leaderboard(tmp_path).breaches
    assert copied.broken[0].reason == "has the log or the weights of seed0"


def test_the_same_arm_by_other_code_is_another_entry(tmp_path):
    for seed, top1 in enumerate((70.0, 75.0)):
        folder = write_benchmark_record(tmp_path / f"seed{seed}", seed=seed, top1=top1)
    edit_json(folder / "environment.json", lambda environment: environment["code"].update(fingerprint="0" * 64))
    cover_tracks(folder)
    text = leaderboard(tmp_path).to_text()
    assert "75.00 (n=1)" in text
    assert "70.00 (n=1)" in text
