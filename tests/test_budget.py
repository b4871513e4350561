"""The budget: what the clock counts as what, when the time is up, and what a resumed run knows of its past."""

import pytest

from vit24h.budget import BudgetClock, Position
from vit24h.config import BudgetConfig


class FakeTime:
    """A clock that only moves when it is told to, and a device that takes its time to finish what is queued."""

    def __init__(self):
        self.seconds = 1000.0  # a monotonic clock starts anywhere
        self.queued_s = 0.0

    def now(self):
        return self.seconds

    def synchronize(self):
        self.seconds += self.queued_s
        self.queued_s = 0.0


def budget(hours=None, epochs=None, steps=None, counts="train"):
    return BudgetConfig(hours=hours, epochs=epochs, steps=steps, counts=counts)


def make_clock(limit, time):
    return BudgetClock(limit, now=time.now, synchronize=time.synchronize)


def test_every_second_is_in_exactly_one_phase():
    time = FakeTime()
    clock = make_clock(budget(hours=1), time)
    time.seconds += 7  # setting up
    with clock.phase("train"):
        time.seconds += 100
        with clock.phase("eval"):
            time.seconds += 30
            with clock.phase("checkpoint"):
                time.seconds += 5
            time.seconds += 3
        time.seconds += 10
    time.seconds += 1
    assert clock.seconds() == {
        "setup_s": 8,
        "train_s": 110,
        "eval_s": 33,
        "checkpoint_s": 5,
        "lost_s": 0,
        "wall_s": 156,
    }


def test_an_error_inside_a_phase_ends_the_phase():
    time = FakeTime()
    clock = make_clock(budget(hours=1), time)
    with pytest.raises(ZeroDivisionError), clock.phase("eval"):
        time.seconds += 2
        raise ZeroDivisionError
    time.seconds += 3
    assert (clock.seconds()["eval_s"], clock.seconds()["setup_s"]) == (2, 3)


def test_work_queued_on_the_device_is_counted_in_the_phase_that_queued_it():
    time = FakeTime()
    clock = make_clock(budget(hours=1), time)
    with clock.phase("train"):
        time.seconds += 1
        time.queued_s = 20
        with clock.phase("eval"):
            time.seconds += 4
    assert clock.seconds()["train_s"] == 21
    assert clock.seconds()["eval_s"] == 4


@pytest.mark.parametrize(("counts", "counted"), [("train", 3600.0), ("all", 3600.0 + 400 + 60 + 10)])
def test_the_budget_counts_training_or_everything(counts, counted):
    time = FakeTime()
    clock = make_clock(budget(hours=2, counts=counts), time)
    time.seconds += 10
    for phase, seconds in (("train", 3600), ("eval", 400), ("checkpoint", 60)):
        with clock.phase(phase):
            time.seconds += seconds
    assert clock.counted_s == counted
    assert clock.progress(epochs=0, steps=0) == counted / 7200


@pytest.mark.parametrize(
    ("limit", "before", "at"),
    [
        (budget(hours=1), {"train": 3599.9}, {"train": 3600.0}),
        (budget(epochs=2), {"epochs": 1.999}, {"epochs": 2.0}),
        (budget(steps=10), {"steps": 9}, {"steps": 10}),
    ],
)
def test_a_budget_is_over_exactly_when_it_is_spent(limit, before, at):
    for spent, over in ((before, False), (at, True)):
        time = FakeTime()
        clock = make_clock(limit, time)
        with clock.phase("train"):
            time.seconds += spent.get("train", 0)
        assert clock.expired(epochs=spent.get("epochs", 0), steps=spent.get("steps", 0)) is over


def test_an_epoch_or_step_budget_never_looks_at_the_time():
    time = FakeTime()
    for limit in (budget(epochs=2), budget(steps=10)):
        clock = make_clock(limit, time)
        with clock.phase("train"):
            time.seconds += 1e9
        assert clock.progress(epochs=0, steps=0) == 0


def test_a_resumed_clock_goes_on_and_states_what_was_lost():
    time = FakeTime()
    first = make_clock(budget(hours=1), time)
    time.seconds += 5
    with first.phase("train"):
        time.seconds += 600
        saved = first.state_dict()
        time.seconds += 90  # trained, then lost in a crash

    time.seconds += 7 * 24 * 3600  # the machine was off for a week: that is in no phase
    second = make_clock(budget(hours=1), time)
    time.seconds += 11
    second.load_state_dict(saved, lost_s=90.0)
    with second.phase("train"):
        time.seconds += 50
    assert second.seconds() == {
        "setup_s": 16,
        "train_s": 650,
        "eval_s": 0,
        "checkpoint_s": 0,
        "lost_s": 90,
        "wall_s": 756,
    }
    assert second.counted_s == 650  # lost training bought nothing, so it is not charged

    third = make_clock(budget(hours=1), time)
    third.load_state_dict(second.state_dict(), lost_s=1.0)
    assert third.seconds()["lost_s"] == 91


def test_a_position_counts_epochs_with_their_fraction():
    position = Position(samples_per_epoch=200)
    assert not position.epoch_ended
    for batch, (epochs, ended) in enumerate([(0.32, False), (0.64, False), (1.0, True), (1.32, False)], start=1):
        position.advance(64, last_of_epoch=batch % 3 == 0)  # 3 × 64 = 192: the tail of 8 is left out
        assert (position.epochs, position.epoch_ended) == (epochs, ended)
    assert (position.step, position.samples_seen) == (4, 256)
