"""What a budget buys, from what things cost: the timeline of a run, both ways round, without training one."""

from dataclasses import replace

import pytest

from vit24h.config import load_config
from vit24h.prediction import (
    Costs,
    SizeCost,
    binding,
    hours_for,
    hours_to_each_size,
    median,
    predict,
    with_hours,
    workers_wanted,
)
from vit24h.report.paper import EPOCH_SAMPLES, READING_ERROR_HOURS, published, published_throughput

SAMPLES = 6400  # an epoch: 100 steps of 64
SMALL = ["model.image_size=64", "model.patch_size=16"]
BY_EPOCHS = [*SMALL, "curriculum.initial_size=32", "curriculum.size_step=16", "curriculum.epochs_per_stage=2"]
BY_BUDGET = [
    *SMALL,
    "curriculum.initial_size=32",
    "curriculum.size_step=16",
    "curriculum.epochs_per_stage=null",
    "curriculum.budget_fraction_per_stage=0.25",
]
STEP_S = {32: 1.0, 48: 2.0, 64: 4.0}  # an epoch takes 100, 200, 400 s
SLOW_STARTS = {32: 5.0, 48: 0.0, 64: 7.0}


def costs(**others):
    first = others.pop("first", {})
    sizes = tuple(SizeCost(size, 64, step_s, first.get(size, 0.0)) for size, step_s in STEP_S.items())
    return Costs(sizes, **others)


def config(*settings, arm="combined", **budget):
    limits = {"hours": "null", "epochs": "null", "steps": "null", **budget}
    return load_config(
        f"paper/{arm}", overrides=[*settings, *(f"budget.{key}={value}" for key, value in limits.items())]
    )


def stages(timeline):
    return [(stage.image_size, stage.begin_s, stage.end_s, stage.begin_epochs) for stage in timeline.stages]


@pytest.mark.parametrize("arm", ["baseline", "locality", "localvit"])
def test_without_a_curriculum_an_epoch_is_an_epoch(arm):
    planned = config(*SMALL, arm=arm, hours=1)
    timeline = predict(planned, costs(), SAMPLES)
    assert timeline.epochs == pytest.approx(9)  # 3600 s of 400 s each
    assert timeline.steps == pytest.approx(900)
    assert stages(timeline) == [(64, 0, pytest.approx(3600), 0)]
    assert timeline.never_reached == ()


CASES = [
    # hours of budget -> what each stage begins with, in seconds and epochs; epochs in all; sizes it never comes to
    (BY_EPOCHS, {"hours": 0.5}, [(32, 0, 0), (48, 200, 2), (64, 600, 4)], 4 + 1200 / 400, ()),
    (BY_EPOCHS, {"hours": 600 / 3600}, [(32, 0, 0), (48, 200, 2)], 4, (64,)),
    (BY_EPOCHS, {"hours": 150 / 3600}, [(32, 0, 0)], 1.5, (48, 64)),
    (BY_EPOCHS, {"epochs": 5}, [(32, 0, 0), (48, 200, 2), (64, 600, 4)], 5, ()),
    (BY_EPOCHS, {"epochs": 4}, [(32, 0, 0), (48, 200, 2)], 4, (64,)),  # as the paper's run of 30 epochs never sees 224
    (BY_EPOCHS, {"steps": 350}, [(32, 0, 0), (48, 200, 2)], 3.5, (64,)),
    (BY_BUDGET, {"hours": 1}, [(32, 0, 0), (48, 900, 9), (64, 1800, 13.5)], 13.5 + 4.5, ()),
    (BY_BUDGET, {"epochs": 8}, [(32, 0, 0), (48, 200, 2), (64, 600, 4)], 8, ()),
    (BY_BUDGET, {"steps": 80}, [(32, 0, 0), (48, 20, 0.2), (64, 60, 0.4)], 0.8, ()),
]


@pytest.mark.parametrize(("curriculum", "budget", "expected", "epochs", "never"), CASES)
def test_each_size_begins_when_it_should(curriculum, budget, expected, epochs, never):
    timeline = predict(config(*curriculum, **budget), costs(), SAMPLES)
    found = [(stage.image_size, stage.begin_s, stage.begin_epochs) for stage in timeline.stages]
    assert found == [(size, pytest.approx(s, abs=1e-3), pytest.approx(e, abs=1e-3)) for size, s, e in expected]
    assert timeline.epochs == pytest.approx(epochs)
    assert timeline.never_reached == never


@pytest.mark.parametrize("curriculum", [BY_EPOCHS, BY_BUDGET])
@pytest.mark.parametrize("counts", ["train", "all"])
@pytest.mark.parametrize("hours", [0.01, 0.3, 5.0])
def test_the_parts_add_up(curriculum, counts, hours):
    cost = costs(first=SLOW_STARTS, evaluation_s=30.0, checkpoint_s=2.0, setup_s=11.0)
    timeline = predict(config(*curriculum, "runtime.checkpoint_minutes=3", hours=hours, counts=counts), cost, SAMPLES)
    first, last = timeline.stages[0], timeline.stages[-1]
    assert (first.begin_s, first.begin_epochs, first.begin_wall_s) == (0, 0, 11.0)
    assert last.end_s == timeline.train_s
    assert last.end_epochs == timeline.epochs
    for before, after in zip(timeline.stages, timeline.stages[1:], strict=False):
        assert (before.end_s, before.end_epochs) == (after.begin_s, after.begin_epochs)
    trained = sum(stage.steps * STEP_S[stage.image_size] + SLOW_STARTS[stage.image_size] for stage in timeline.stages)
    assert timeline.train_s == pytest.approx(trained)
    assert timeline.steps == pytest.approx(sum(stage.steps for stage in timeline.stages))
    assert timeline.eval_s == 30.0 * timeline.evaluations
    assert timeline.wall_s == timeline.train_s + timeline.eval_s + timeline.checkpoint_s + 11.0
    # An evaluation or a first step that is under way when the time is up is finished.
    assert hours * 3600 - 1e-3 <= timeline.counted_s <= hours * 3600 + 30 + 2 + 7


def test_the_first_step_at_a_size_is_paid_once_for_each():
    timeline = predict(config(*BY_EPOCHS, epochs=5), costs(first=SLOW_STARTS), SAMPLES)
    assert stages(timeline) == [
        (32, 0, pytest.approx(205), 0),
        (48, pytest.approx(205), pytest.approx(605), 2),
        (64, pytest.approx(605), pytest.approx(605 + 7 + 400), 4),
    ]


@pytest.mark.parametrize(
    ("every", "epochs", "evaluations"),
    [(1, 6, 6), (2, 6, 3), (4, 6, 2), (0, 6, 1)],  # the last weights are evaluated in any case, and only once
)
def test_evaluations(every, epochs, evaluations):
    planned = config(*SMALL, f"evaluation.every_epochs={every}", arm="baseline", epochs=epochs)
    timeline = predict(planned, costs(evaluation_s=9.0), SAMPLES)
    assert timeline.evaluations == evaluations
    assert timeline.eval_s == 9.0 * evaluations


def test_a_checkpoint_every_so_often_at_every_change_of_size_and_at_the_end():
    planned = config(*BY_EPOCHS, "runtime.checkpoint_minutes=5", epochs=5)
    timeline = predict(planned, costs(checkpoint_s=1.0), SAMPLES)
    # 200 s at 32 px: none in between; border; 400 s at 48 px: one; border; 400 s at 64 px: one; end
    assert timeline.checkpoint_s == 5.0


def test_where_all_phases_count_there_are_fewer_epochs():
    cost = costs(evaluation_s=100.0)
    only_training = predict(config(*SMALL, arm="baseline", hours=1), cost, SAMPLES)
    everything = predict(config(*SMALL, arm="baseline", hours=1, counts="all"), cost, SAMPLES)
    assert only_training.epochs == pytest.approx(9)
    assert everything.epochs == pytest.approx(7.25)  # 500 s each; of the last one 100 s of training
    assert everything.counted_s == pytest.approx(3600)


def test_a_batch_that_grows_where_images_are_small():
    sizes = (SizeCost(32, 640, 2.0), SizeCost(48, 128, 2.0), SizeCost(64, 64, 2.0))  # an epoch: 10, 50, 100 steps
    timeline = predict(config(*BY_EPOCHS, epochs=5), Costs(sizes), SAMPLES)
    assert [stage.steps for stage in timeline.stages] == pytest.approx([20, 100, 100])
    assert timeline.train_s == pytest.approx(2.0 * 220)


def test_the_tail_of_an_epoch_that_fills_no_batch_costs_nothing():
    planned = config(*SMALL, arm="baseline", epochs=3)
    assert predict(planned, costs(), SAMPLES + 63).train_s == pytest.approx(predict(planned, costs(), SAMPLES).train_s)


@pytest.mark.parametrize("arm", ["baseline", "combined"])
@pytest.mark.parametrize("curriculum", [BY_EPOCHS, BY_BUDGET, None])
@pytest.mark.parametrize("counts", ["train", "all"])
@pytest.mark.parametrize("hours", [0.04, 0.7, 24.0])
def test_hours_to_epochs_and_back(arm, curriculum, counts, hours):
    planned = config(*(curriculum or SMALL), arm=arm if curriculum else "baseline", hours=hours, counts=counts)
    cost = costs(first=SLOW_STARTS, evaluation_s=0.5, checkpoint_s=0.1, setup_s=3.0)
    epochs = predict(planned, cost, SAMPLES).epochs
    back = hours_for(planned, cost, SAMPLES, epochs)
    assert back == pytest.approx(hours, rel=0.01)
    assert predict(with_hours(planned, back), cost, SAMPLES).epochs == pytest.approx(epochs, rel=0.01)


def test_more_hours_never_buy_less():
    for curriculum in (BY_EPOCHS, BY_BUDGET):
        bought = [
            predict(config(*curriculum, hours=hours / 10), costs(first=SLOW_STARTS), SAMPLES).epochs
            for hours in range(1, 40)
        ]
        assert bought == sorted(bought)


def test_when_a_size_would_begin_that_the_budget_never_comes_to():
    planned = config(*BY_EPOCHS, hours=0.05)
    assert predict(planned, costs(), SAMPLES).never_reached == (48, 64)
    begins = hours_to_each_size(planned, costs(), SAMPLES)
    assert begins == {32: 0, 48: pytest.approx(200 / 3600), 64: pytest.approx(600 / 3600)}


def test_the_authors_run_as_their_own_speeds_predict_it():
    """Their 32/5/32 curve: the length of an epoch at each size gives back the hours at which the sizes begin."""
    curve = published("combined")[0]
    late_s = (curve.hours[0] - published_throughput()[0].hours_per_epoch) * 3600  # of the first epoch, on a cold disk
    sizes = [SizeCost(size.image_size, 64, 64 / size.images_per_s) for size in published_throughput()]
    cost = Costs((replace(sizes[0], first_step_s=late_s), *sizes[1:]))
    timeline = predict(load_config("paper/combined", overrides=["budget.hours=22"]), cost, EPOCH_SAMPLES)
    assert timeline.never_reached == (224,)
    assert timeline.epochs == pytest.approx(len(curve.hours), abs=0.3)
    for stage, begin in zip(timeline.stages[1:], curve.hours[4::5], strict=False):
        assert stage.begin_s / 3600 == pytest.approx(begin, abs=2 * READING_ERROR_HOURS)


def test_sizes_of_a_configuration():
    assert load_config("paper/baseline").image_sizes == [224]
    assert load_config("paper/combined").image_sizes == [32, 64, 96, 128, 160, 192, 224]


def test_who_sets_the_pace_and_how_many_workers_would_keep_up():
    assert binding(500, 1000) == "loader"
    assert binding(1000, 500) == "step"
    assert workers_wanted(500, 1000, 8) == 16
    assert workers_wanted(500, 1001, 8) == 17
    assert workers_wanted(500, 700, 0) == 2  # in the training process itself


def test_the_budget_of_a_question_replaces_the_profiles():
    planned = config(*SMALL, arm="baseline", epochs=3, counts="all")
    asked = with_hours(planned, 2.0)
    assert (asked.budget.hours, asked.budget.epochs, asked.budget.counts) == (2.0, None, "all")
    assert replace(asked, budget=planned.budget) == planned


@pytest.mark.parametrize(("values", "middle"), [([3.0], 3.0), ([9.0, 1.0, 2.0], 2.0), ([4.0, 1.0], 2.5)])
def test_the_median_is_no_mean(values, middle):
    assert median(values) == middle
