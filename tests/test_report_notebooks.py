"""The notebooks and the written report: thin, stored clean, and run to their end on whatever records there are."""

from __future__ import annotations

import csv
import html.parser
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from record_factory import PAPER_ARMS, write_run, write_suite
from vit24h import paths
from vit24h.errors import UserError
from vit24h.report import notebooks, open_suite, write_report

SOURCES = notebooks.notebook_sources()
NAMES = [source.stem for source in SOURCES]


def half_finished(folder):
    write_suite(folder, {"baseline": {}, "locality": {"state": "failed", "done": 0.4}}, profile="quick")
    write_run(folder, "combined", profile="quick", state="unfinished", done=0.6)
    return folder


def shipped(folder):
    assert (paths.results() / "mini").is_dir(), "results/mini is missing: vit24h export runs/mini results/mini"
    shutil.copytree(paths.results() / "mini", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("report"))
    return folder


def outputs(path: Path) -> list[dict]:
    return [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])]


# Stored


def test_the_papers_set_is_there():
    assert NAMES == [
        "1_locality",
        "2_image_size_curriculum",
        "3_main_table",
        "4_where_the_time_went",
        "5_is_it_reproduced",
    ]


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_notebooks_are_stored_clean(source):
    content = json.loads(source.read_text())
    nbformat.validate(content)
    for cell in content["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert cell["metadata"] == {}
    assert set(content["metadata"]) == {"kernelspec", "language_info"}


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_notebooks_say_what_they_show_and_hold_no_numbers_of_their_own(source):
    opening, *others = json.loads(source.read_text())["cells"]
    text = "".join(opening["source"])
    assert text.startswith("# ")
    assert "**What it shows.**" in text
    assert "**From which records.**" in text
    for cell in others:
        if cell["cell_type"] == "code":
            assert not any(character.isdigit() for character in "".join(cell["source"]).replace("vit24h", ""))


def test_the_papers_curves_come_with_how_they_were_read_off():
    readme = (paths.notebooks() / "reference" / "README.md").read_text()
    assert "±0.5 points" in readme
    with (paths.notebooks() / "reference" / "paper_curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["figure"] for row in rows} == {"locality", "curriculum"}
    assert all(0 <= float(row["top1_percent"]) <= 100 and 0 < float(row["train_hours"]) < 24 for row in rows)


# Executed


@pytest.mark.slow
@pytest.mark.parametrize("make", [None, shipped, half_finished], ids=["no records", "shipped", "half-finished suite"])
def test_the_whole_report_is_written(tmp_path, make):
    suite = tmp_path / "quick"
    suite.mkdir()
    if make:
        make(suite)
    files = write_report(suite)
    assert [file.stem for file in files.notebooks if file.suffix == ".ipynb"] == NAMES
    for file in (files.index, *files.tables, *files.figures, *files.notebooks):
        assert file.is_file()
        assert file.parent == suite / "report"
    for file in files.notebooks:
        if file.suffix == ".ipynb":
            kinds = [output["output_type"] for output in outputs(file)]
            assert "error" not in kinds
            assert not [output for output in outputs(file) if output.get("name") == "stderr"]
    assert {file.suffix for file in files.figures} == {".png", ".pdf"}
    for link in _links(files.index.read_text()):
        assert (files.folder / link).exists(), link


def test_a_report_can_be_written_elsewhere_than_among_the_records(tmp_path):
    write_run(tmp_path / "quick", "baseline", profile="quick")
    before = sorted(tmp_path.joinpath("quick").rglob("*"))
    files = write_report(tmp_path / "quick", notebooks=False, folder=tmp_path / "elsewhere" / "deep")
    assert files.index == tmp_path / "elsewhere" / "deep" / "index.html"
    assert sorted(tmp_path.joinpath("quick").rglob("*")) == before
    for link in _links(files.index.read_text()):
        assert (files.folder / link).exists(), link


def test_git_keeps_shipped_records_and_not_the_report_on_them():
    if not (paths.project_root() / ".git").exists():
        pytest.skip("not a checkout")
    names = {f"results/mini/{name}": name.startswith("report/") for name in ("report/table.md", "a/seed0/log.jsonl")}
    for name, ignored in names.items():
        done = subprocess.run(["git", "check-ignore", "--quiet", "--no-index", name], cwd=paths.project_root())
        assert (done.returncode == 0) == ignored, name


def test_a_notebook_that_breaks_is_named_and_the_rest_is_written(tmp_path, monkeypatch):
    broken = tmp_path / "notebooks"
    broken.mkdir()
    cells = [nbformat.v4.new_code_cell("raise RuntimeError('no such arm')")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), broken / "broken.ipynb")
    monkeypatch.setattr(notebooks, "notebook_sources", lambda: [broken / "broken.ipynb"])
    write_run(tmp_path / "quick", "baseline", profile="quick")
    with pytest.raises(UserError, match=r"broken.ipynb \(RuntimeError: no such arm\)"):
        write_report(tmp_path / "quick")
    report = tmp_path / "quick" / "report"
    assert "not executed to its end: RuntimeError: no such arm" in (report / "index.html").read_text()
    assert (report / "table.md").is_file()
    assert outputs(report / "broken.ipynb")[-1]["output_type"] == "error"


def test_a_notebook_that_hangs_is_stopped(tmp_path, monkeypatch):
    cells = [nbformat.v4.new_code_cell("import time; time.sleep(600)")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "slow.ipynb")
    monkeypatch.setattr(notebooks, "TIMEOUT_S", 4)
    with notebooks.executing([tmp_path / "slow.ipynb"], tmp_path, tmp_path) as executed:
        pass
    assert executed[0].problem == "a cell took more than 4 s"


def test_what_a_kernel_itself_says_is_kept_off_the_terminal_and_told_where_it_died(tmp_path, capfd):
    codes = {
        "noisy": "import os; os.write(2, b'Traceback')",
        "dying": "import os; os.write(2, b'out of ink'); os._exit(1)",
    }
    for name, code in codes.items():
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), tmp_path / f"{name}.ipynb")
    (tmp_path / "out").mkdir()
    with notebooks.executing([tmp_path / f"{name}.ipynb" for name in codes], tmp_path, tmp_path / "out") as executed:
        pass
    assert capfd.readouterr().err == ""
    noisy, dying = executed
    assert noisy.problem == ""
    assert dying.problem.endswith("out of ink")


def test_no_kernel_is_left_running(tmp_path):
    code = "import os; print(os.getpid())"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), tmp_path / "pid.ipynb")
    (tmp_path / "out").mkdir()
    with notebooks.executing([tmp_path / "pid.ipynb"], tmp_path, tmp_path / "out") as executed:
        pass
    kernel = int(outputs(executed[0].notebook)[0]["text"])
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)


def test_the_kernel_is_this_python_and_writes_nothing_at_home(tmp_path, monkeypatch):
    """As in a container whose user has no home of their own."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(home))
    code = "import sys; print(sys.executable)"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), tmp_path / "which.ipynb")
    (tmp_path / "out").mkdir()
    with notebooks.executing([tmp_path / "which.ipynb"], tmp_path, tmp_path / "out") as executed:
        pass
    assert executed[0].problem == ""
    assert outputs(executed[0].notebook)[0]["text"].strip() == sys.executable
    assert not list(home.rglob("*"))


def test_a_report_can_be_written_without_a_home(tmp_path):
    write_run(tmp_path / "quick", "baseline", profile="quick")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "MPL", "JUPYTER_"))
    }
    code = (
        "import sys, pathlib; from vit24h.report import notebooks, write_report\n"
        "last = notebooks.notebook_sources()[-1]; notebooks.notebook_sources = lambda: [last]\n"
        "write_report(pathlib.Path(sys.argv[1]))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "quick")], env=environment | {"HOME": "/proc/none"}, check=True
    )
    assert (tmp_path / "quick" / "report" / "5_is_it_reproduced.html").is_file()


def test_a_folder_that_is_not_there_or_cannot_be_written_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        write_report(tmp_path / "none")
    write_run(tmp_path / "quick", "baseline", profile="quick")
    (tmp_path / "quick" / "report").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="the report cannot be written there"):
        write_report(tmp_path / "quick", notebooks=False)


def test_a_damaged_record_is_named_in_what_is_written(tmp_path):
    write_run(tmp_path / "quick", "baseline", profile="quick")
    (write_run(tmp_path / "quick", "combined", profile="quick") / "result.json").write_text("{")
    files = write_report(tmp_path / "quick", notebooks=False)
    for file in (files.index, files.folder / "table.md", files.folder / "table.tex"):
        assert "Damaged and left out: combined/seed0/result.json" in file.read_text()


def test_records_stay_as_they_are(tmp_path):
    write_suite(tmp_path / "quick", PAPER_ARMS, profile="quick")
    before = {path: path.read_bytes() for path in (tmp_path / "quick").rglob("*") if path.is_file()}
    write_report(tmp_path / "quick", notebooks=False)
    assert {path: path.read_bytes() for path in before} == before


# Which records


def test_notebooks_show_the_suite_they_are_given(tmp_path, monkeypatch):
    write_run(tmp_path / "runs" / "a", "baseline")
    write_run(tmp_path / "b", "locality")
    monkeypatch.setenv("VIT24H_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("VIT24H_SUITE", str(tmp_path / "b"))
    assert open_suite().name.endswith("/b")


def test_without_one_they_show_the_suite_last_written_to(tmp_path, monkeypatch):
    older = write_run(tmp_path / "runs" / "a", "baseline", profile="quick")
    write_run(tmp_path / "runs" / "b", "baseline", profile="full", machine="h200")
    (tmp_path / "runs" / "c").mkdir()
    monkeypatch.delenv("VIT24H_SUITE", raising=False)
    monkeypatch.setenv("VIT24H_RUNS", str(tmp_path / "runs"))
    assert open_suite().name == "runs/b"
    row = json.loads((older / "log.jsonl").read_text().splitlines()[-1])
    with (older / "log.jsonl").open("a") as file:
        file.write(json.dumps(row | {"time": "2026-06-01T00:00:00Z"}) + '\n{"cut off by a k')
    assert open_suite().name == "runs/a"


def test_on_a_fresh_clone_they_show_the_committed_records(tmp_path, monkeypatch):
    write_run(tmp_path / "results" / "mini", "baseline")
    monkeypatch.delenv("VIT24H_SUITE", raising=False)
    monkeypatch.setenv("VIT24H_RUNS", str(tmp_path / "none"))
    monkeypatch.setattr(paths, "results", lambda: tmp_path / "results")
    assert open_suite().name == "results/mini"
    monkeypatch.setattr(paths, "results", lambda: tmp_path / "none")
    assert "./run_all.sh --quick" in open_suite().description()


def _links(page: str) -> list[str]:
    links = []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, _, attributes):
            links.extend(value for name, value in attributes if name in ("href", "src"))

    Reader().feed(page)
    assert links
    return links
