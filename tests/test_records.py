"""Run records: rows are whole, what a resume went back behind does not count, damage is named."""

import json
import math
import os
import subprocess
import sys

import pytest
import yaml

from vit24h.errors import UserError
from vit24h.records import RunFolder, find_runs, load_run
from vit24h.records.environment import capture_environment
from vit24h.records.reader import effective_rows, read_rows


def row(event, **content):
    return {"event": event, "step": 0, **content}


def write_run(path, rows=(), **config):
    with RunFolder(path) as folder:
        folder.config.write_text(yaml.safe_dump({"name": "combined", "seed": 1, **config}))
        for content in rows:
            folder.append(content)
    return path


def test_rows_come_back_as_written_and_nan_stays_nan(tmp_path):
    with RunFolder(tmp_path) as folder:
        folder.append(row("start", value=1))
        folder.append(row("epoch", train_loss=math.nan))
    first, second = read_rows(tmp_path / "log.jsonl")
    assert (first["event"], first["value"]) == ("start", 1)
    assert math.isnan(second["train_loss"])
    assert second["time"].endswith("+00:00")


def test_a_row_cut_off_by_a_kill_is_dropped_and_the_next_one_is_whole(tmp_path):
    for tail in (b'{"event": "ep', b"{", b'{"event": "epoch", "step": 0}'):
        path = tmp_path / str(len(tail))
        write_run(path, [row("start"), row("stage")])
        with (path / "log.jsonl").open("ab") as log:
            log.write(tail)  # no newline: not a row
        with RunFolder(path) as folder:
            assert folder.rows == 2
            folder.append(row("resume", rows=2))
        assert [r["event"] for r in read_rows(path / "log.jsonl")] == ["start", "stage", "resume"]


def test_what_is_done_again_after_a_resume_counts_once():
    rows = [
        row("start"),
        row("stage", n=1),
        row("epoch", n=1),  # the checkpoint is saved here, with three rows in the log
        row("checkpoint"),
        row("eval", n=1),
        row("epoch", n=2),
        row("compile", compile_s=9.0),
        row("incident", kind="corrupt_image"),  # met again
        row("incident", kind="loader_rebuilt"),  # of its time
        row("resume", rows=3),
        row("incident", kind="corrupt_image"),
        row("eval", n=1),
        row("epoch", n=2),
    ]
    assert [(r["event"], r.get("n") or r.get("kind")) for r in effective_rows(rows)] == [
        ("start", None),
        ("stage", 1),
        ("epoch", 1),
        ("checkpoint", None),
        ("incident", "loader_rebuilt"),
        ("resume", None),
        ("incident", "corrupt_image"),
        ("eval", 1),
        ("epoch", 2),
    ]
    twice = [*rows, row("resume", rows=3), row("eval", n=1)]
    assert [r["n"] for r in effective_rows(twice) if r["event"] in ("eval", "epoch")] == [1, 1]


@pytest.mark.parametrize(
    ("end", "result", "state"),
    [
        ([], None, "unfinished"),
        ([row("end", reason="interrupted")], None, "unfinished"),
        ([row("end", reason="failed")], None, "failed"),
        ([row("end", reason="failed"), row("resume", rows=0)], None, "unfinished"),
        ([row("end", reason="budget")], {"top1": 1.0}, "finished"),
    ],
)
def test_the_state_of_a_run(tmp_path, end, result, state):
    write_run(tmp_path, [row("start"), *end])
    if result:
        (tmp_path / "result.json").write_text(json.dumps(result))
    assert load_run(tmp_path).state == state


def test_runs_are_found_in_any_folder_above_them(tmp_path):
    for arm, seed in (("combined", 0), ("baseline", 1), ("baseline", 0)):
        write_run(tmp_path / "suite" / arm / f"seed{seed}", [row("start")], name=arm, seed=seed)
    found = [(run.suite, run.arm, run.seed) for run in find_runs(tmp_path)]
    assert found == [("suite", "baseline", 0), ("suite", "baseline", 1), ("suite", "combined", 0)]
    assert find_runs(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("log.jsonl", '{"event": "start"}\nnonsense\n', "log.jsonl line 2: damaged"),
        ("log.jsonl", "[1]\n", "log.jsonl line 1: damaged"),
        ("log.jsonl", "[" * 100_000 + "\n", "log.jsonl line 1: damaged"),
        ("result.json", "{", "result.json: damaged"),
        ("environment.json", "[]", "environment.json: damaged"),
        ("config.yaml", "name: [", "config.yaml: damaged"),
        ("config.yaml", "seed: 1", "config.yaml: damaged"),
    ],
)
def test_a_damaged_record_is_named_with_file_and_line(tmp_path, file, content, expected):
    write_run(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=expected):
        load_run(tmp_path)


def test_records_are_read_and_reported_without_torch():
    code = "import sys, vit24h.records, vit24h.report, vit24h.suite; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_environment_names_what_a_reader_needs():
    environment = capture_environment(gpu=None, dataset={"name": "x"}, seed=3)
    assert environment["packages"]["torch"].startswith("2.11.0")
    assert environment["cpu"]["cores"] == len(os.sched_getaffinity(0))
    assert environment["memory_gib"] > 0
    assert environment["git"] is None or len(environment["git"]["commit"]) == 40
