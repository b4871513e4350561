"""`vit24h export`: what is published is the record, whole and verifiable, and says nothing about where it was made."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest
import yaml

from record_factory import write_run, write_suite
from vit24h.config import load_config
from vit24h.errors import UserError
from vit24h.records.chain import linked
from vit24h.records.export import RECORD_FILES, export_records
from vit24h.records.reader import load_run, read_rows
from vit24h.records.same_config import require_same_config
from vit24h.records.verify import verify

HERE = {"data": {"path": "/home/someone/images"}}


@pytest.fixture
def suite(tmp_path):
    folder = write_suite(tmp_path / "runs" / "mini", {"baseline": {}, "combined": {}}, seeds=2, changes=HERE)
    for run in folder.glob("*/seed*"):  # what a real run's folder holds besides
        (run / "model.safetensors").write_bytes(b"weights")
        (run / "checkpoints").mkdir()
        (run / ".lock").write_text("123")
    (folder / "suite.json").write_text('{"runs": []}')
    (folder / "report").mkdir()
    (folder / "report" / "table.md").write_text("a table")
    return folder


def everything_below(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def with_row(run, row):
    """A last row added to an unfinished run's log as the run itself would."""
    *_, last = read_rows(run / "log.jsonl")
    link = json.loads((run / "log.jsonl").read_text().splitlines()[-1])["link"]
    line, _ = linked(last | row, link)
    with (run / "log.jsonl").open("a") as file:
        file.write(line + "\n")


def test_the_text_of_every_record_goes_along_and_nothing_else(suite, tmp_path):
    before = everything_below(suite)
    done = export_records(suite, tmp_path / "results" / "mini")
    found = everything_below(tmp_path / "results" / "mini")
    names = {f"{arm}/seed{seed}/{name}" for arm in ("baseline", "combined") for seed in (0, 1) for name in RECORD_FILES}
    assert found.keys() == names
    assert len(done.runs) == 4
    assert done.size == sum(len(text) for text in found.values())
    assert everything_below(suite) == before
    for name, text in found.items():
        assert name.endswith("config.yaml") or text == before[name]


def test_no_path_of_the_machine_goes_along_and_every_rule_finds_the_same_record(suite, tmp_path):
    done = export_records(suite, tmp_path / "results")
    assert not any(b"/home/someone" in text for text in everything_below(tmp_path / "results").values())
    for target in done.runs:
        original = suite / target.relative_to(tmp_path / "results")
        (original / "model.safetensors").unlink()  # made up, so not the record's
        assert verify(target).findings == verify(original).findings
        config = yaml.safe_load((target / "config.yaml").read_text())
        assert config["data"].pop("path") is None
        theirs = load_run(original).config
        del theirs["data"]["path"]
        assert config == theirs


def test_a_published_record_is_still_known_as_one_of_its_configuration(tmp_path):
    config = load_config("paper/combined", profile="mini", overrides=["data.path=/home/someone/images"])
    (tmp_path / "config.yaml").write_text(config.to_yaml().replace("/home/someone/images", "null"))
    require_same_config(config, tmp_path)


@pytest.mark.parametrize("state", ["unfinished", "failed"])
def test_what_is_not_finished_is_refused_by_name_unless_told(suite, tmp_path, state):
    write_run(suite, "locality", 3, state=state, done=0.4)
    with pytest.raises(UserError, match=r"locality/seed3 \(.*--unfinished"):
        export_records(suite, tmp_path / "results")
    assert not (tmp_path / "results").exists()
    assert len(export_records(suite, tmp_path / "results", unfinished=True).runs) == 5
    assert load_run(tmp_path / "results" / "locality" / "seed3").state == state


def test_nothing_is_written_over(suite, tmp_path):
    export_records(suite / "baseline", tmp_path / "results" / "baseline")
    before = everything_below(tmp_path / "results")
    with pytest.raises(UserError, match=r"baseline/seed0, .*baseline/seed1: there already"):
        export_records(suite, tmp_path / "results")
    assert everything_below(tmp_path / "results") == before
    export_records(suite / "combined", tmp_path / "results" / "combined")  # more may come beside it
    assert len(everything_below(tmp_path / "results")) == 16


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("log.jsonl", lambda text: text.replace('"step": 3', '"step": 4', 1)),
        ("environment.json", lambda text: text.replace("Xeon", "Epyc")),
        ("config.yaml", lambda text: text.replace("seed: 0", "seed: 7")),
        ("result.json", lambda text: text[:40]),
        ("log.jsonl", lambda text: text[:-40]),
    ],
)
def test_a_record_that_is_not_what_its_run_wrote_is_refused(suite, tmp_path, name, edit):
    file = suite / "baseline" / "seed0" / name
    assert edit(file.read_text()) != file.read_text()
    file.write_text(edit(file.read_text()))
    with pytest.raises(UserError, match="seed0: not the record that its run wrote"):
        export_records(suite, tmp_path / "results", unfinished=True)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "told",
    [
        {"event": "incident", "kind": "corrupt_image", "path": "/home/someone/images/train/n01/a.JPEG"},
        {"event": "incident", "kind": "dataset_gone", "reason": "~/images/val: cannot be read"},
        {"event": "incident", "kind": "loader_rebuilt", "reason": "a process died on machine17"},
    ],
)
def test_a_path_that_the_hash_chain_holds_is_named_and_goes_along_only_if_told(tmp_path, monkeypatch, told):
    monkeypatch.setattr(socket, "gethostname", lambda: "machine17.lab.example")
    run = write_run(tmp_path / "mini", "baseline", state="unfinished", done=0.5)
    with_row(run, {"event": "incident", "kind": "corrupt_image", "path": "train/n01/a.JPEG", "reason": "1/2 and/or"})
    export_records(tmp_path / "mini", tmp_path / "relative", unfinished=True)
    with_row(run, told)
    rows = len(read_rows(run / "log.jsonl"))
    with pytest.raises(UserError, match=rf"baseline/seed0/log.jsonl line {rows} \(.*--keep-paths"):
        export_records(tmp_path / "mini", tmp_path / "results", unfinished=True)
    assert not (tmp_path / "results").exists()
    export_records(tmp_path / "mini", tmp_path / "results", unfinished=True, keep_paths=True)
    assert (tmp_path / "results/baseline/seed0/log.jsonl").read_bytes() == (run / "log.jsonl").read_bytes()


def test_bad_places_are_one_clear_line(suite, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for source, destination, told in (
        (tmp_path / "none", tmp_path / "results", "no such folder"),
        (tmp_path / "empty", tmp_path / "results", "no records below it"),
        (suite, suite / "results", "choose a place outside it"),
        (suite, tmp_path / "file", "cannot write there"),
    ):
        with pytest.raises(UserError, match=told):
            export_records(source, destination)


def test_the_command_says_what_it_wrote(suite, tmp_path):
    command = [sys.executable, "-m", "vit24h", "export", str(suite), str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("4 records (config.yaml, environment.json, log.jsonl, result.json), ")
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert len(again.stderr.strip().splitlines()) == 1
