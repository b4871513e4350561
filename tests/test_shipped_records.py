"""`results/mini`: what the README says of the records that ship, held against the records themselves."""

from __future__ import annotations

import re
from statistics import fmean

import pytest
from matplotlib.text import Text

from vit24h import paths
from vit24h.records import load_run
from vit24h.records.export import RECORD_FILES, paths_in
from vit24h.records.rules import MAY_BE_UNCHECKED
from vit24h.records.verify import find_records, verify
from vit24h.report import figures, read_suite
from vit24h.report.embed import embedded
from vit24h.report.learning import epoch_paces_at_full_size, pace_at_full_size, top1_by_epoch
from vit24h.report.page import CAPTIONS
from vit24h.report.paper import published_epochs

MINI = paths.results() / "mini"
ARMS = {"baseline", "locality", "curriculum", "combined", "localvit"}
OF_ITS_SCALE = {"dataset", "one GPU", "evaluation"}  # the rules that a run on a CPU on other images cannot keep
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def runs():
    assert MINI.is_dir(), "results/mini is missing: vit24h export runs/mini results/mini"
    return [load_run(record) for record in find_records(MINI)]


def test_every_arm_is_there_with_two_seeds_or_more_of_ten_minutes_or_more(runs):
    seeds = {arm: {run.seed for run in runs if run.arm == arm} for arm in ARMS}
    assert {run.arm for run in runs} == ARMS
    assert all(len(found) >= 2 for found in seeds.values())
    assert len(runs) == sum(len(found) for found in seeds.values())
    for run in runs:
        assert run.state == "finished"
        assert run.config["profile"] == "mini"
        assert run.config["budget"]["counts"] == "train"
        assert run.result["train_hours"] * 60 >= 10


def test_they_may_stand_side_by_side(runs):
    (group,) = read_suite(MINI).comparisons
    assert len(group.runs) == len(runs)
    assert not group.notes, "one code, and no setting but the arm's own differs"


def test_each_is_the_record_that_its_run_wrote(runs):
    for run in runs:
        found = verify(run.path)
        assert {finding.rule for finding in found.broken} == OF_ITS_SCALE, run.path
        assert {finding.rule for finding in found.findings if finding.verdict == "not checkable"} <= MAY_BE_UNCHECKED


@pytest.mark.parametrize("name", CAPTIONS)
def test_every_figure_of_them_names_profile_and_machine_and_what_they_are_not(runs, name):
    (group,) = read_suite(MINI).comparisons
    figure = getattr(figures, name)([group])
    text = " ".join(found.get_text().replace("\N{NO-BREAK SPACE}", " ") for found in figure.findobj(Text))
    assert f"profile mini · {group.machine}" in text
    assert group.machine != "machine not recorded"
    assert "outside the benchmark" in text
    assert f"{len({run.seed for run in runs})} seeds" in text


def test_they_are_text_alone_and_small_and_hold_no_path(runs):
    files = [path for path in MINI.rglob("*") if path.is_file() and (MINI / "report") not in path.parents]
    assert {path.name for path in files} == set(RECORD_FILES)
    assert len(files) == len(RECORD_FILES) * len(runs)
    assert sum(path.stat().st_size for path in files) < 2 * MEGABYTE
    for path in files:
        assert not paths_in(path.read_text()), path


def test_the_committed_records_make_the_committed_tables():
    readme = paths.project_root() / "README.md"
    assert MINI.is_dir(), "results/mini is missing"
    assert readme.read_text() == embedded(readme.read_text(), read_suite(MINI)), (
        "made anew by: vit24h report results/mini --embed README.md"
    )


def test_what_the_readme_says_of_the_gaps_is_so(runs):
    def mean(arm, quantity):
        return fmean(quantity(run) for run in runs if run.arm == arm)

    def top1(arm):
        return mean(arm, lambda run: run.result["top1"])

    def epochs(arm):
        return mean(arm, lambda run: run.result["epochs"])

    def at_equal_epochs(one, other):
        learned = [top1_by_epoch([run for run in runs if run.arm == arm]) for arm in (one, other)]
        last = max(learned[0].keys() & learned[1].keys())
        return learned[0][last] - learned[1][last]

    for curriculum, without in (("curriculum", "baseline"), ("combined", "locality")):
        assert top1(curriculum) > top1(without)
        assert epochs(curriculum) > epochs(without)
        assert at_equal_epochs(curriculum, without) < 0
    assert top1("localvit") > top1("baseline")
    assert epochs("localvit") / epochs("baseline") > 1.2 * published_epochs("localvit") / published_epochs("baseline")
    for other in ARMS - {"localvit"}:
        assert at_equal_epochs("localvit", other) > 0
    paces = [pace for run in runs if run.arm == "locality" for pace in epoch_paces_at_full_size(run)]
    cost = mean("baseline", pace_at_full_size) / mean("locality", pace_at_full_size)
    assert abs(cost - 1) < max(paces) / min(paces) - 1


def test_the_readme_names_the_budget_and_the_seeds_of_the_records(runs):
    text = (paths.project_root() / "README.md").read_text()
    (hours,) = {run.config["budget"]["hours"] for run in runs}
    assert f"--set budget.hours={hours}" in text
    seeds = ",".join(str(seed) for seed in sorted({run.seed for run in runs}))
    assert re.search(rf"--seeds {seeds} --set budget.hours", text)
