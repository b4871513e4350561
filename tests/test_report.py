"""The report's numbers: what a table, a verdict or a mark says about records, in every state they can be in."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import statistics
import subprocess
import sys

import pytest

from benchmark_record import cover_tracks, edit_json, edit_rows
from record_factory import PAPER_ARMS, write_run, write_suite
from vit24h.errors import UserError
from vit24h.report import read_suite, render_table, tables, timing, units, verdicts
from vit24h.report.arms import ARMS, arm, order
from vit24h.report.comparison import Spread, comparisons
from vit24h.report.embed import embedded
from vit24h.report.latest import status
from vit24h.report.paper import published, published_gaps, published_throughput
from vit24h.report.standing import breaches, is_benchmark, mark


def groups_of(folder):
    return read_suite(folder).comparisons


def only_group(folder):
    (group,) = groups_of(folder)
    return group


def csv_rows(folder):
    return {row["arm"]: row for row in csv.DictReader(io.StringIO(tables.results_csv(groups_of(folder))))}


# Tables


def test_table_gives_mean_and_sample_standard_deviation_over_seeds(tmp_path):
    write_suite(tmp_path / "mini", {"baseline": {}, "combined": {}}, seeds=3)
    results = [json.loads(path.read_text()) for path in (tmp_path / "mini" / "combined").glob("*/result.json")]
    top1 = [result["top1"] for result in results]
    row = csv_rows(tmp_path / "mini")["combined"]
    assert float(row["top1_mean"]) == pytest.approx(statistics.fmean(top1), rel=1e-5)
    assert float(row["top1_sd"]) == pytest.approx(statistics.stdev(top1), rel=1e-5)
    assert row["seeds_finished"] == "3"
    text = tables.results(groups_of(tmp_path / "mini")).to_text()
    assert f"{statistics.fmean(top1):.1f} ± {statistics.stdev(top1):.1f} (n=3)" in text


def test_one_seed_has_no_spread(tmp_path):
    write_run(tmp_path / "mini", "baseline")
    text = tables.results(groups_of(tmp_path / "mini")).to_markdown()
    assert "(n=1)" in text
    assert "±" not in text.split("Mean ±")[0]
    assert csv_rows(tmp_path / "mini")["baseline"]["top1_sd"] == ""


def test_difference_is_to_the_baseline_of_the_same_comparison(tmp_path):
    write_suite(tmp_path / "mini", {"baseline": {}, "combined": {}}, seeds=2)
    rows = csv_rows(tmp_path / "mini")
    expected = float(rows["combined"]["top1_mean"]) - float(rows["baseline"]["top1_mean"])
    assert float(rows["combined"]["top1_difference_to_baseline"]) == pytest.approx(expected, abs=1e-3)
    assert rows["baseline"]["top1_difference_to_baseline"] == ""


def test_arms_come_in_the_papers_order_then_others_by_name(tmp_path):
    for name in ("zebra", "localvit", "combined", "ant", "baseline", "locality"):
        write_run(tmp_path / "mini", name)
    group = only_group(tmp_path / "mini")
    names = [record.arm.name for record in group.arms]
    assert names == ["baseline", "locality", "combined", "localvit", "ant", "zebra"]


def test_every_shipped_arm_has_a_colour_and_a_marker_of_its_own():
    assert len({(known.colour, known.marker) for known in ARMS}) == len(ARMS)
    assert len({known.marker for known in ARMS}) == len(ARMS), "in grey only the marker tells arms apart"
    assert arm("my_idea") == arm("my_idea")
    assert order("my_idea") > order("combined_64_5_32")


def test_latex_is_escaped_and_has_one_cell_for_each_column(tmp_path):
    write_run(tmp_path / "mini", "50%_of_a_&_b")
    latex = tables.results(groups_of(tmp_path / "mini")).to_latex()
    row = next(line for line in latex.splitlines() if line.startswith("50"))
    assert row.startswith(r"50\% of a \& b & 1 & ")
    assert row.replace(r"\&", "").count("&") == len(tables.results([]).columns) - 1
    assert r"\toprule" in latex
    assert r"\bottomrule" in latex
    assert not set("±×Δ≥·−–").intersection(latex), "not every TeX reads these"


def test_markdown_rows_have_as_many_cells_as_the_header(tmp_path):
    write_run(tmp_path / "mini", "a|b")
    lines = [
        line for line in tables.results(groups_of(tmp_path / "mini")).to_markdown().splitlines() if line[:1] == "|"
    ]
    assert {line.replace("\\|", "").count("|") for line in lines} == {len(tables.results([]).columns) + 1}


def test_closing_table_fits_a_terminal_and_says_what_the_run_is_not(tmp_path):
    write_suite(tmp_path / "quick", PAPER_ARMS, profile="quick")
    text = render_table(read_suite(tmp_path / "quick").runs)
    assert "Smoke run on drawn images – not the paper's result" in text
    assert max(len(line) for line in text.splitlines()[2:8]) <= 120
    for label in ("Baseline", "Locality", "Curriculum", "Combined"):
        assert label in text


def test_the_papers_number_stands_in_its_own_column(tmp_path):
    write_suite(tmp_path / "mini", {"combined": {}, "curriculum": {}})
    rows = csv_rows(tmp_path / "mini")
    assert rows["combined"]["paper_top1"] == str(published("combined")[0].last)
    assert rows["curriculum"]["paper_top1"] == "", "no curve without locality is published"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (43.12, "43.1 s"), (612, "10.2 min"), (86_400, "24.0 h"), (math.nan, "–"), (None, "–")],
)
def test_durations_read_naturally(seconds, text):
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(22_050_664, "22.1 M"), (4_608_000_000, "4.61 G"), (812, "812"), (67_554, "67.6 k"), (1_281_024, "1.28 M")],
)
def test_amounts_have_three_digits(value, text):
    assert units.amount(value) == text


def test_nan_stays_nan():
    assert units.percent(math.nan) == "NaN"
    assert units.percent(None) == "–"


# States of the records


def test_without_records_every_table_says_how_to_make_some():
    of_arms = (tables.results, tables.main_columns, tables.time_by_size, tables.budget_buys)
    of_claims = (tables.claims, tables.published_numbers, tables.gap_sources)
    for make in (*of_arms, *of_claims):
        for text in (make([]).to_markdown(), make([]).to_text(), make([]).to_html(), make([]).to_latex()):
            assert "./run_all.sh --quick" in text


def test_unfinished_seeds_are_named_and_averaged_with_nothing(tmp_path):
    write_run(tmp_path / "mini", "combined", 0)
    write_run(tmp_path / "mini", "combined", 1, state="unfinished", done=0.5)
    finished = json.loads((tmp_path / "mini/combined/seed0/result.json").read_text())
    row = csv_rows(tmp_path / "mini")["combined"]
    assert (row["seeds_finished"], row["seeds"], row["state"]) == ("1", "2", "1 finished, 1 unfinished")
    assert float(row["top1_mean"]) == pytest.approx(finished["top1"])
    text = tables.results(groups_of(tmp_path / "mini")).to_markdown()
    assert "1 of 2" in text
    assert "Combined, seed 1: unfinished, 50 % of its budget so far" in text


def test_an_arm_without_a_finished_seed_is_shown_so_far(tmp_path):
    write_run(tmp_path / "mini", "combined", state="unfinished", done=0.4)
    text = tables.results(groups_of(tmp_path / "mini")).to_text()
    assert "so far" in text
    assert "0 of 1" in text
    assert csv_rows(tmp_path / "mini")["combined"]["top1_mean"] == ""


def test_a_failed_run_is_shown_with_its_reason(tmp_path):
    write_run(tmp_path / "mini", "locality", state="failed", done=0.5)
    (run,) = read_suite(tmp_path / "mini").runs
    assert status(run).startswith("failed after 5.00 min of training: the loss was not finite")
    assert status(run) in tables.results(groups_of(tmp_path / "mini")).to_markdown()


def test_lost_time_is_never_hidden(tmp_path):
    write_run(tmp_path / "mini", "baseline", lost_s=90)
    assert csv_rows(tmp_path / "mini")["baseline"]["lost_s"] == "90"
    markdown = tables.results(groups_of(tmp_path / "mini")).to_markdown()
    assert "Baseline, seed 0: 90.0 s of work lost to interruptions." in markdown
    assert "90.0 s" in render_table(read_suite(tmp_path / "mini").runs)


def test_a_damaged_record_is_named_and_the_others_are_shown(tmp_path):
    write_run(tmp_path / "mini", "baseline")
    damaged = write_run(tmp_path / "mini", "combined")
    (damaged / "log.jsonl").write_text('{"event": "start"}\nnot json\n')
    suite = read_suite(tmp_path / "mini")
    assert [run.arm for run in suite.runs] == ["baseline"]
    assert "combined/seed0/log.jsonl line 2" in suite.description()
    assert str(tmp_path) not in suite.description()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("config.yaml", "curriculum:", "curricula:"),
        ("log.jsonl", '"top1": ', '"top_1": '),
        ("log.jsonl", '"train_s": ', '"train": '),
        ("log.jsonl", '"compile_s": ', '"compiling": '),
        ("result.json", '"top5": ', '"top5": "high", "x": '),
    ],
)
def test_a_record_with_a_field_missing_or_mistyped_is_named_and_left_out(tmp_path, file, old, new):
    folder = write_run(tmp_path / "mini", "baseline", compile_s=20.0)
    (folder / file).write_text((folder / file).read_text().replace(old, new))
    suite = read_suite(tmp_path / "mini")
    assert suite.runs == ()
    assert file in suite.damaged[0]


# What may be compared


@pytest.mark.parametrize(
    "other",
    [
        {"profile": "quick"},
        {"machine": "h200"},
        {"changes": {"budget": {"hours": 0.5}}},
        {"changes": {"smoke": True}},
    ],
    ids=["profile", "machine", "budget", "smoke"],
)
def test_runs_that_differ_in_what_matters_are_never_in_one_comparison(tmp_path, other):
    write_run(tmp_path / "mini", "baseline")
    write_run(tmp_path / "mini", "combined", **other)
    groups = groups_of(tmp_path / "mini")
    assert [len(group.runs) for group in groups] == [1, 1]
    assert csv_rows(tmp_path / "mini")["combined"]["top1_difference_to_baseline"] == ""
    assert "they are not compared" in read_suite(tmp_path / "mini").description()
    assert "not to be compared" in tables.results(groups).to_markdown()


def test_two_suites_in_one_folder_are_not_mixed(tmp_path):
    write_run(tmp_path / "monday", "baseline")
    write_run(tmp_path / "tuesday", "baseline")
    assert [len(group.runs) for group in groups_of(tmp_path)] == [1, 1]


def test_paper_epochs_compares_arms_that_have_their_own_number_of_epochs(tmp_path):
    write_suite(tmp_path / "pe", {"baseline": {}, "combined": {}}, profile="paper-epochs", machine="h200")
    group = only_group(tmp_path / "pe")
    assert group.budget == "budgets: 18 epochs (Baseline); 30 epochs (Combined)"


def test_a_run_that_went_on_elsewhere_names_both_machines(tmp_path):
    write_run(tmp_path / "full", "baseline", profile="full", machine="h200", lost_s=60, resumed_on="a100")
    assert only_group(tmp_path / "full").machine == "NVIDIA H200, then NVIDIA A100-SXM4-40GB"


def test_seeds_with_another_setting_are_pointed_out(tmp_path):
    write_run(tmp_path / "mini", "baseline", 0)
    write_run(tmp_path / "mini", "baseline", 1, changes={"optimizer": {"learning_rate": 0.5}})
    assert "Baseline: its seeds differ in optimizer.learning_rate" in only_group(tmp_path / "mini").notes


def test_where_the_data_lie_and_how_many_workers_read_them_is_no_difference(tmp_path):
    write_run(tmp_path / "mini", "baseline", 0)
    changes = {"data": {"path": "/elsewhere"}, "runtime": {"workers": 7}}
    write_run(tmp_path / "mini", "baseline", 1, changes=changes)
    assert only_group(tmp_path / "mini").notes == ()


# Where the gaps come from


def test_a_gap_is_split_into_what_an_epoch_teaches_and_how_many_there_were(tmp_path):
    write_suite(tmp_path / "mini", {"baseline": {}, "locality": {}}, seeds=2)
    group = only_group(tmp_path / "mini")
    (block,) = tables.gap_sources([group]).blocks
    (row,) = block.rows  # of the claims, the one whose two arms are here
    assert row[0] == "Locality − Baseline"
    assert row[2] == verdicts.gap_text(verdicts.gap(group, verdicts.CLAIMS[0]))
    locality, baseline = (group.find(arm).runs for arm in ("locality", "baseline"))
    # The last epoch that all four runs ended; the evaluation after it has its number.
    last = min(run.rows_of("epoch")[-1]["epoch"] for run in (*locality, *baseline))
    at_last = [
        statistics.fmean(next(row["top1"] for row in run.rows_of("eval") if row["epoch"] == last) for run in runs)
        for runs in (locality, baseline)
    ]
    assert row[3] == f"{units.signed(at_last[0] - at_last[1])} after epoch {last}"
    epochs = [statistics.fmean(run.result["epochs"] for run in runs) for runs in (locality, baseline)]
    assert row[4] == f"{epochs[0]:.1f} / {epochs[1]:.1f}"
    assert row[5] == "15 / 18"  # of the two published curves in 22 hours
    assert epochs[0] < epochs[1]  # its steps take longer, and their time is the same
    assert any("How even the machine was" in note for note in block.notes)


@pytest.mark.parametrize(
    ("points", "half_width", "at_equal", "epochs_ratio", "source"),
    [
        (2.0, 1.0, 1.0, 0.9, "more from each epoch"),
        (2.0, 1.0, 1.0, 1.5, "more from each epoch, and more of them"),
        (2.0, 1.0, -1.0, 2.0, "more epochs in its time"),
        (-2.0, 1.0, 1.0, 0.8, "fewer epochs in its time"),
        (-2.0, 1.0, -1.0, 1.05, "less from each epoch"),
        (-2.0, 1.0, -1.0, 0.5, "less from each epoch, and fewer of them"),
        (2.0, 3.0, 1.0, 1.0, "more from each epoch; may be chance"),
        (2.0, math.nan, 1.0, 1.0, "more from each epoch; may be chance"),
        (2.0, 1.0, math.nan, 1.0, "–"),
    ],
)
def test_a_gap_is_told_by_where_it_comes_from(points, half_width, at_equal, epochs_ratio, source):
    assert verdicts.source_of_gap(verdicts.Gap(points, half_width, (2, 2)), at_equal, epochs_ratio) == source


def test_the_order_of_the_arms_is_told_beside_the_papers(tmp_path):
    def told(folder):
        return tables.order_in_words(groups_of(folder))

    write_suite(tmp_path / "runs" / "mini", PAPER_ARMS | {"localvit": {}}, seeds=2)
    text = told(tmp_path / "runs" / "mini")
    means = {record.arm.label: record.top1.mean for record in only_group(tmp_path / "runs" / "mini").arms}
    shown = re.findall(r"(\w+) ([\d.]+)(?: >| \()", text)
    assert [float(number) for _, number in shown] == sorted((round(mean, 1) for mean in means.values()), reverse=True)
    assert {label for label, _ in shown} == set(means)
    assert "(2 seeds)" in text
    assert ("here Baseline above Locality" in text) == (means["Baseline"] > means["Locality"])
    assert "steps from one arm to the next" in text
    write_suite(tmp_path / "one", {"baseline": {}, "combined": {}})
    assert "That is the paper's order, Combined > Baseline. One seed has no spread" in told(tmp_path / "one")
    write_run(tmp_path / "alone", "baseline")
    assert "no order yet" in told(tmp_path / "alone")
    assert "./run_all.sh --quick" in tables.order_in_words([])


def test_equal_epochs_are_told_not_to_be_equal_learning_rates(tmp_path):
    own = {"optimizer": {"schedule_epochs": None}}
    write_suite(tmp_path / "own", {"baseline": {}, "locality": {}}, changes=own)
    write_suite(tmp_path / "common", {"baseline": {}, "locality": {}})
    told = "Learning rates end with the budget"
    assert told in tables.gap_sources(groups_of(tmp_path / "own")).to_text()
    assert told not in tables.gap_sources(groups_of(tmp_path / "common")).to_text()


def test_gaps_of_arms_that_have_not_finished_come_from_nowhere(tmp_path):
    write_run(tmp_path / "mini", "baseline")
    write_run(tmp_path / "mini", "locality", state="unfinished", done=0.4)
    text = tables.gap_sources(groups_of(tmp_path / "mini")).to_markdown()
    assert "No two arms of a claim have finished." in text
    assert "Locality − Baseline" not in text


# Within another text

README = """# A readme
<!-- begin runs/mini: results -->
typed by hand
<!-- end runs/mini: results -->
<!-- begin runs/other: results -->
stays
<!-- end runs/other: results -->
"""


def test_tables_are_put_between_their_marks_and_nothing_else_changes(tmp_path):
    suite = read_suite(write_suite(tmp_path / "runs" / "mini", {"baseline": {}, "locality": {}}))
    once = embedded(README, suite)
    assert "typed by hand" not in once
    assert "| Locality | 1 |" in once
    assert once.replace(
        once[once.index("mini: results -->") : once.index("<!-- end runs/mini")], "X"
    ) == README.replace(README[README.index("mini: results -->") : README.index("<!-- end runs/mini")], "X")
    assert embedded(once, suite) == once
    assert embedded(once.replace("| Locality | 1 |", "| Locality | 9 |"), suite) == once


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nothing\n", "no place for runs/mini, but for none at all"),
        (README.replace("runs/mini", "runs/this"), "but for runs/this, runs/other"),
        (README.replace("mini: results", "mini: verdict"), "no such part; there are results, order, gaps"),
        (README.replace("<!-- end runs/mini: results -->", ""), "without <!-- end runs/mini: results --> after it"),
    ],
)
def test_a_text_without_a_fitting_place_is_refused(tmp_path, text, told):
    suite = read_suite(write_suite(tmp_path / "runs" / "mini", {"baseline": {}}))
    with pytest.raises(UserError, match=told):
        embedded(text, suite)


# Standing to the rules


def test_a_full_run_on_one_gpu_is_a_benchmark_record(tmp_path):
    write_run(tmp_path / "full", "baseline", profile="full", machine="h200")
    group = only_group(tmp_path / "full")
    assert is_benchmark(group.runs[0])
    assert mark(group) == ""


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"profile": "mini"}, "24,000 + 5,000 images, not ImageNet-1k's"),
        ({"machine": "cpu"}, "no GPU"),
        ({"changes": {"budget": {"hours": 48}}}, "budget 48 h, not 24 h"),
        ({"profile": "paper-epochs"}, "budget 18 epochs, not 24 h"),
        ({"profile": "quick"}, "smoke run on drawn images"),
    ],
)
def test_a_broken_rule_is_named(tmp_path, options, reason):
    write_run(tmp_path / "suite", "baseline", **({"profile": "full", "machine": "h200"} | options))
    group = only_group(tmp_path / "suite")
    assert reason in breaches(group.runs[0])
    assert mark(group)


def test_a_result_that_is_not_the_last_evaluation_breaks_a_rule(tmp_path):
    folder = write_run(tmp_path / "full", "baseline", profile="full", machine="h200")
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"top1": 99.0}))
    reasons = breaches(only_group(tmp_path / "full").runs[0])
    assert any("its result is not the last evaluation of its log" in reason for reason in reasons)


def test_a_smoke_run_on_other_images_does_not_claim_that_they_were_drawn(tmp_path):
    write_run(tmp_path / "quick", "baseline", profile="quick", changes={"data": {"synthetic": False}})
    group = only_group(tmp_path / "quick")
    assert mark(group) == "smoke run – not the paper's result"
    assert "drawn" not in group.images


# Where the time went


def test_time_by_size_adds_up_to_the_clock(tmp_path):
    write_run(tmp_path / "mini", "combined", lost_s=30)
    (run,) = read_suite(tmp_path / "mini").runs
    sizes = timing.time_by_size(run)
    assert [time.image_size for time in sizes] == [16, 32, 48, 64]
    assert sum(time.train_s for time in sizes) == pytest.approx(run.result["clock"]["train_s"])
    assert sum(time.samples for time in sizes) == run.result["samples_seen"]
    phases = timing.time_by_phase(run)
    assert sum(phases.values()) == pytest.approx(run.result["clock"]["wall_s"])
    assert phases["lost"] == 30


def test_waiting_is_what_the_log_says(tmp_path):
    write_run(tmp_path / "mini", "baseline", waiting=0.5)
    (run,) = read_suite(tmp_path / "mini").runs
    waited_s = sum(row["data_wait_s"] for row in run.rows_of("epoch"))
    assert timing.time_by_phase(run)["waiting"] == pytest.approx(waited_s, rel=1e-6)
    (time,) = timing.time_by_size(run)
    steps_alone = run.result["samples_seen"] / (run.result["clock"]["train_s"] - waited_s)
    assert time.images_per_s_without_waiting == pytest.approx(steps_alone, rel=1e-6)


def test_what_compiling_took_is_told_by_size_and_is_no_part_of_a_step(tmp_path):
    write_run(tmp_path / "plain", "combined")
    write_run(tmp_path / "compiled", "combined", compile_s=20.0)
    plain, compiled = (timing.time_by_size(read_suite(tmp_path / name).runs[0]) for name in ("plain", "compiled"))
    assert [time.compile_s for time in compiled] == [20.0] * 4
    assert [time.compile_s for time in plain] == [0.0] * 4
    for time, same in zip(compiled, plain, strict=True):
        assert time.step_ms == pytest.approx(same.step_ms, rel=0.05)
        assert time.images_per_s_without_waiting == pytest.approx(same.images_per_s_without_waiting, rel=0.05)
        assert time.images_per_s < 0.9 * same.images_per_s  # within the time that counts


def test_compiling_is_a_column_where_something_was_compiled_and_nowhere_else(tmp_path):
    write_run(tmp_path / "mini", "baseline")
    assert "Compiling" not in tables.time_by_size(groups_of(tmp_path / "mini")).to_markdown()
    write_run(tmp_path / "mini", "combined", compile_s=20.0)
    table = tables.time_by_size(groups_of(tmp_path / "mini"))
    place = table.columns.index("Compiling")
    rows = [row for block in table.blocks for row in block.rows]
    assert [(row[0], row[place]) for row in rows] == [("Baseline", "0 s")] + [("Combined", "20.0 s")] * 4


@pytest.mark.parametrize("name", ["baseline", "combined"])
def test_the_runs_own_budget_buys_what_it_bought(tmp_path, name):
    write_run(tmp_path / "mini", name)
    (run,) = read_suite(tmp_path / "mini").runs
    epochs, at_least = timing.epochs_bought(run, run.result["clock"]["train_s"])
    assert not at_least
    assert epochs == pytest.approx(run.result["epochs"], rel=0.02)


def test_no_speed_is_invented_for_sizes_that_were_never_reached(tmp_path):
    write_run(tmp_path / "pe", "combined", profile="paper-epochs", machine="h200", state="unfinished", done=0.5)
    (run,) = read_suite(tmp_path / "pe").runs
    epochs, at_least = timing.epochs_bought(run, 1000 * 3600)
    assert at_least
    assert epochs == pytest.approx(15, abs=0.01), "three sizes of five epochs were measured"


def test_the_published_curriculum_was_starved_by_its_loader():
    speeds = {point.image_size: point.images_per_s for point in published_throughput()}
    assert sorted(speeds) == [32, 64, 96, 128, 160, 192]
    assert speeds[32] / speeds[128] < 1.15, "a 32-px image has 5 tokens and a 128-px one 65"


# Verdicts


def finding_of(group, claim):
    return next(finding for finding in verdicts.findings(group) if claim in finding.statement)


def benchmark_suite(folder, **top1):
    """Three seeds of every arm, 0.1 points apart around the given top-1."""
    write_suite(folder, {name: {} for name in top1}, seeds=3, profile="full", machine="h200")
    for name, value in top1.items():
        for seed in range(3):
            run = folder / name / f"seed{seed}"
            changed = {"top1": value + (seed - 1) / 10, "top5": 90.0}
            edit_rows(run, lambda rows, to=changed: [row for row in rows if row["event"] == "eval"][-1].update(to))
            edit_json(run / "result.json", lambda result, to=changed: result.update(to))
            cover_tracks(run)
    return only_group(folder)


@pytest.mark.parametrize(
    ("locality", "verdict", "reason"),
    [
        (66.0, "reproduced", "the gap is above its uncertainty; its size agrees with the published one"),
        (62.0, "reproduced", "the gap is above its uncertainty; it is smaller than published"),
        (75.0, "reproduced", "the gap is above its uncertainty; it is larger than published"),
        (60.1, "no verdict", "the gap is within its uncertainty"),
        (55.0, "not reproduced", "the order is the other way round"),
    ],
)
def test_benchmark_records_with_seeds_carry_a_verdict(tmp_path, locality, verdict, reason):
    finding = finding_of(benchmark_suite(tmp_path / "full", baseline=60.0, locality=locality), "Locality makes")
    assert (finding.verdict, finding.reason) == (verdict, reason)
    assert finding.published == "+6.5 / +5.7"


@pytest.mark.parametrize(
    ("locality", "verdict"), [(66.0, "reproduced"), (60.1, "no verdict"), (55.0, "not reproduced")]
)
def test_the_order_of_the_arms_is_judged_step_by_step(tmp_path, locality, verdict):
    group = benchmark_suite(tmp_path / "full", baseline=60.0, locality=locality, combined=70.0, localvit=40.0)
    assert finding_of(group, "The order of the arms").verdict == verdict


@pytest.mark.parametrize(
    ("options", "seeds", "why"),
    [
        ({"profile": "quick"}, 3, "smoke run"),
        ({"profile": "mini"}, 3, "outside the benchmark"),
        ({"profile": "full", "machine": "h200"}, 1, "one seed"),
        ({"profile": "full", "machine": "h200", "state": "unfinished", "done": 0.6}, 2, "unfinished"),
        ({"profile": "full", "machine": "h200", "state": "failed", "done": 0.6}, 2, "failed"),
        ({"profile": "full", "machine": "h200", "changes": {"budget": {"hours": 48}}}, 2, "outside the benchmark"),
    ],
)
def test_no_verdict_where_the_records_do_not_carry_one(tmp_path, options, seeds, why):
    write_suite(tmp_path / "suite", {"baseline": {}, "locality": {}}, seeds=seeds, **options)
    finding = finding_of(only_group(tmp_path / "suite"), "Locality makes")
    assert finding.verdict == "no verdict"
    assert why in finding.reason


def test_a_missing_arm_is_named(tmp_path):
    write_run(tmp_path / "full", "baseline", profile="full", machine="h200")
    assert finding_of(only_group(tmp_path / "full"), "Locality makes").reason == "no record of Locality"


def test_interval_of_a_gap_is_welchs():
    # By hand: means 51 and 48, variances 1 and 4 over n = 3: half width t(df) √(1/3 + 4/3), df = 2.94 → 2: 4.303.
    assert verdicts._welch_half_width(Spread((50, 51, 52)), Spread((46, 48, 50))) == pytest.approx(
        4.303 * 1.29099, 1e-4
    )
    assert math.isnan(verdicts._welch_half_width(Spread((50,)), Spread((46, 48))))


def test_published_gaps_are_taken_within_one_plot_where_one_has_both():
    assert published_gaps("combined", "locality") == [pytest.approx(49.8 - 45.3)]
    assert len(published_gaps("locality", "baseline")) == 2, "both plots have both"
    assert published_gaps("curriculum", "baseline") == []


def test_published_numbers_are_judged_at_the_papers_epochs_only(tmp_path):
    for profile, verdict in (("full", "no verdict"), ("paper-epochs", "reproduced")):
        write_suite(tmp_path / profile, {"baseline": {}}, seeds=3, profile=profile, machine="h200")
        low, high = (f(curve.last for curve in published("baseline")) for f in (min, max))
        for result in (tmp_path / profile).glob("**/result.json"):
            content = json.loads(result.read_text()) | {"top1": (low + high) / 2}
            result.write_text(json.dumps(content))
        group = only_group(tmp_path / profile)
        assert verdicts.number_met(group, group.arms[0])[0] == verdict


# The room


def test_the_report_needs_no_torch():
    code = "import sys, vit24h.report, vit24h.report.notebooks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_comparisons_of_nothing_are_none():
    assert comparisons([]) == []
