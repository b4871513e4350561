"""The figures: readable, honest about the state of the records, and the same for the same records."""

from __future__ import annotations

from itertools import combinations

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from record_factory import PAPER_ARMS, write_run, write_suite
from vit24h.report import figures, read_suite
from vit24h.report.arms import ARMS, arm
from vit24h.report.page import CAPTIONS

ABLATIONS = {known.name: {} for known in ARMS}


def nothing(folder):
    folder.mkdir()


def one_arm(folder):
    write_run(folder, "combined", profile="full", machine="h200")


def several_seeds(folder):
    write_suite(folder, PAPER_ARMS | {"localvit": {}}, seeds=2)


def smoke(folder):
    write_suite(folder, PAPER_ARMS, profile="quick")


def half_finished(folder):
    full = {"profile": "full", "machine": "h200"}
    write_run(folder, "baseline", lost_s=3000, **full)
    write_run(folder, "locality", state="failed", done=0.45, **full)
    write_run(folder, "combined", 0, state="unfinished", done=0.6, **full)
    write_run(folder, "combined", 1, **full)
    write_run(folder, "curriculum", state="unfinished", done=0.0, **full)


def mixed(folder):
    write_suite(folder, {"baseline": {}, "locality": {}}, seeds=2)
    write_run(folder, "combined", machine="h200")
    write_run(folder, "curriculum", profile="quick")


def every_arm(folder):
    write_suite(folder, ABLATIONS, seeds=2, profile="full", machine="h200")


def just_begun(folder):
    """Two budgets of one profile and machine; under the second nothing has been evaluated yet."""
    write_suite(folder, {"baseline": {}, "locality": {}})
    write_run(folder, "localvit", state="unfinished", done=0.02, changes={"budget": {"hours": 0.5}})


STATES = [nothing, one_arm, several_seeds, smoke, half_finished, mixed, every_arm, just_begun]


@pytest.fixture(scope="module", params=STATES, ids=lambda state: state.__name__)
def groups(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / request.param.__name__
    request.param(folder)
    return read_suite(folder).comparisons


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", CAPTIONS)
def test_no_text_is_cut_off_or_hidden_by_another(groups, name, monkeypatch):
    figure = getattr(figures, name)(groups)
    page, drawn = figure.bbox, _drawn_texts(figure, monkeypatch)
    for text, box in drawn:
        assert page.x0 - 1 <= box.x0, f"cut off at the left: {text}"
        assert box.x1 <= page.x1 + 1, f"cut off at the right: {text}"
        assert page.y0 - 1 <= box.y0, f"cut off below: {text}"
        assert box.y1 <= page.y1 + 1, f"cut off above: {text}"
    for (a, box_a), (b, box_b) in combinations(drawn, 2):
        across = min(box_a.x1, box_b.x1) - max(box_a.x0, box_b.x0)
        along = min(box_a.y1, box_b.y1) - max(box_a.y0, box_b.y0)
        # Boxes hold room for descenders and accents: a fifth of a line may touch without ink on ink.
        assert across <= 1 or along <= 0.2 * min(box_a.height, box_b.height), f"one on the other: {a!r}, {b!r}"


def test_an_arm_has_one_colour_in_every_figure(tmp_path):
    several_seeds(tmp_path / "mini")
    groups = read_suite(tmp_path / "mini").comparisons
    for name in ("accuracy_over_time", "locality", "curriculum", "throughput"):
        drawn = {line.get_color() for axes in getattr(figures, name)(groups).axes for line in axes.lines}
        assert arm("locality").colour in drawn, name


def test_an_unfinished_arm_is_dashed_and_so_far(tmp_path):
    write_run(tmp_path / "mini", "baseline")
    write_run(tmp_path / "mini", "combined", state="unfinished", done=0.5)
    figure = figures.accuracy_over_time(read_suite(tmp_path / "mini").comparisons)
    (axes,) = figure.axes
    lines = {line.get_color(): line.get_linestyle() for line in axes.lines if len(line.get_xdata()) > 2}
    assert lines[arm("combined").colour] == "--"
    assert lines[arm("baseline").colour] == "-"
    assert any("so far (50 %)" in text for text in _texts(figure))


def test_seeds_are_a_mean_with_a_band_that_ends_at_the_table(tmp_path):
    write_suite(tmp_path / "mini", {"baseline": {}}, seeds=3)
    (group,) = read_suite(tmp_path / "mini").comparisons
    (axes,) = figures.accuracy_over_time([group]).axes
    line = next(line for line in axes.lines if line.get_color() == arm("baseline").colour)
    assert line.get_ydata()[-1] == pytest.approx(group.arms[0].top1.mean)
    (band,) = axes.collections
    ends = [y for x, y in band.get_paths()[0].vertices if x == pytest.approx(line.get_xdata()[-1])]
    assert max(ends) - min(ends) == pytest.approx(2 * group.arms[0].top1.sd)


def test_the_budget_is_a_line_at_its_hour(tmp_path):
    one_arm(tmp_path / "full")
    (axes,) = figures.accuracy_over_time(read_suite(tmp_path / "full").comparisons).axes
    assert any(np.allclose(line.get_xdata(), 24) for line in axes.lines)
    assert "budget 24 h" in [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("name", CAPTIONS)
def test_smoke_runs_are_marked_in_every_figure_with_profile_and_machine(tmp_path, name):
    smoke(tmp_path / "quick")
    texts = " ".join(_texts(getattr(figures, name)(read_suite(tmp_path / "quick").comparisons)))
    assert "smoke run on drawn images – not the paper's result" in texts
    assert "profile quick" in texts
    assert "Intel Xeon, 2 cores" in texts


def test_other_images_never_share_axes_with_the_papers_curves(tmp_path):
    write_run(tmp_path / "mini", "locality")
    here, paper = figures.locality(read_suite(tmp_path / "mini").comparisons).axes
    assert not [line for line in here.lines if line.get_linestyle() == ":"]
    assert len([line for line in paper.lines if line.get_linestyle() == ":"]) == 3
    write_run(tmp_path / "full", "locality", profile="full", machine="h200")
    (both,) = figures.locality(read_suite(tmp_path / "full").comparisons).axes
    assert {line.get_linestyle() for line in both.lines} >= {"-", ":"}


def test_gaps_on_other_images_never_share_an_axis_with_the_papers(tmp_path):
    write_suite(tmp_path / "mini", {"baseline": {}, "locality": {}}, seeds=2)
    here, paper = figures.gaps(read_suite(tmp_path / "mini").comparisons).axes
    assert not any("published" in label for label in here.get_legend_handles_labels()[1])
    assert all("published" in label for label in paper.get_legend_handles_labels()[1])
    assert "ImageNet-1k" in paper.get_title(loc="left")
    write_suite(tmp_path / "full", {"baseline": {}, "locality": {}}, seeds=2, profile="full", machine="h200")
    (both,) = figures.gaps(read_suite(tmp_path / "full").comparisons).axes
    assert len({label.split(",")[0] for label in both.get_legend_handles_labels()[1]}) == 3


def test_panels_that_differ_in_their_budget_alone_are_named_by_it(tmp_path):
    just_begun(tmp_path / "mini")
    texts = _texts(figures.accuracy_over_time(read_suite(tmp_path / "mini").comparisons))
    assert {"(a) budget 10 min", "(b) budget 30 min"} <= set(texts)
    assert "LocalViT  – so far (2 %)" in texts


def test_waiting_that_is_not_recorded_yet_is_not_said_to_be_none(tmp_path):
    just_begun(tmp_path / "mini")
    texts = " ".join(_texts(figures.time_spent(read_suite(tmp_path / "mini").comparisons)))
    assert "waiting not recorded yet" in texts
    assert " 0.0 % of training" not in texts


def test_arms_at_one_image_size_are_each_to_be_seen(tmp_path):
    several_seeds(tmp_path / "mini")
    _, sizes, *_ = figures.curriculum(read_suite(tmp_path / "mini").comparisons).axes
    markers = [(x, y) for line in sizes.lines if line.get_linestyle() == "None" for x, y in line.get_xydata()]
    px_per_point = sizes.get_window_extent().height / sizes.get_ylim()[1] / sizes.get_figure().dpi * 72
    for (x, y), (other_x, other_y) in combinations(markers, 2):
        assert abs(x - other_x) > 0.3 or abs(y - other_y) * px_per_point > 3


def test_runs_that_may_not_be_compared_have_panels_of_their_own(tmp_path):
    mixed(tmp_path / "mixed")
    figure = figures.accuracy_over_time(read_suite(tmp_path / "mixed").comparisons)
    assert len(figure.axes) == 3
    assert any("not to be compared" in text for text in _texts(figure))


def test_accuracy_and_image_size_share_one_axis_of_time(tmp_path):
    # 90 minutes of records beside 22 published hours: both panels must count in the same unit.
    write_run(tmp_path / "full", "combined", profile="full", machine="h200", changes={"budget": {"hours": 1.5}})
    accuracy, sizes = figures.curriculum(read_suite(tmp_path / "full").comparisons).axes
    assert sizes.get_xlabel() == "Training time (hours)"
    assert sizes.get_xlim() == accuracy.get_xlim()
    assert max(sizes.lines[0].get_xdata()) == pytest.approx(1.5, rel=0.01)


def test_every_point_of_a_curve_is_on_its_axes(tmp_path):
    write_run(tmp_path / "quick", "baseline", profile="quick", changes={"budget": {"hours": 0.001}})
    (axes,) = figures.accuracy_over_time(read_suite(tmp_path / "quick").comparisons).axes
    (line,) = [line for line in axes.lines if line.get_color() == arm("baseline").colour and line.get_marker() == "o"]
    assert line.get_xdata().max() < axes.get_xlim()[1]
    assert line.get_ydata().max() < axes.get_ylim()[1]


def test_arms_next_to_each_other_differ_in_grey():
    def lightness(name):
        red, green, blue = matplotlib.colors.to_rgb(arm(name).colour)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    assert abs(lightness("baseline") - lightness("locality")) > 0.1
    assert abs(lightness("curriculum") - lightness("combined")) > 0.1


def test_the_same_records_give_the_same_files(tmp_path):
    one_arm(tmp_path / "full")
    groups = read_suite(tmp_path / "full").comparisons
    for attempt in ("a", "b"):
        (tmp_path / attempt).mkdir()
        figures.accuracy_over_time(groups).save(tmp_path / attempt, "figure")
    for name in ("figure.png", "figure.pdf"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def _texts(figure) -> list[str]:
    return [text.get_text().replace("\N{NO-BREAK SPACE}", " ") for text in figure.findobj(Text)]


def _drawn_texts(figure, monkeypatch) -> list[tuple[str, Bbox]]:
    """What is really drawn and where: tick labels beyond an axis exist as objects, too."""
    figure.draw_without_rendering()  # settles the layout
    drawn, draw = [], Text.draw

    def noting_draw(text, renderer):
        draw(text, renderer)
        if text.get_visible() and text.get_text().strip():
            drawn.append((text.get_text(), text.get_window_extent(renderer)))

    monkeypatch.setattr(Text, "draw", noting_draw)
    figure.draw_without_rendering()
    return drawn
