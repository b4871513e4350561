"""`vit24h plan`: the command on a few drawn images, its file, its words; paper-equivalent time. Nothing is timed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from record_factory import write_run
from tiny import CURRICULUM, tiny_settings, write_images
from vit24h import cli, planning
from vit24h.config import config_from_dict, load_config
from vit24h.data import BatchPlan
from vit24h.engine import inputs
from vit24h.engine.plan import DiskReads, Measurement, SizeMeasurement, _Bench, _Marks
from vit24h.records import load_run
from vit24h.report import plan as report
from vit24h.report import tables
from vit24h.report.comparison import comparisons
from vit24h.report.paper import deit_s_images_per_s, equivalent_hours, is_deit_s
from vit24h.report.timing import time_by_size

SIZES = [8, 16, 24, 32]
BY_EPOCHS = [
    "curriculum.initial_size=8",
    "curriculum.size_step=8",
    "curriculum.epochs_per_stage=100000",
    "curriculum.budget_fraction_per_stage=null",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def start(runs, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "vit24h", "plan", "--profile", "quick", *words],
        env={**os.environ, "VIT24H_RUNS": str(runs), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


@pytest.fixture
def vit24h_plan(runs, monkeypatch, capsys):
    """The command in this process: exit status, what it printed, and what it complained of."""
    monkeypatch.setenv("VIT24H_RUNS", str(runs))
    before = signal.getsignal(signal.SIGTERM)

    def plan(*words):
        try:
            status = cli.main(["plan", "--profile", "quick", *words])
        except SystemExit as error:  # argparse's
            status = error.code
        said = capsys.readouterr()
        return subprocess.CompletedProcess(words, status, said.out, said.err)

    yield plan
    signal.signal(signal.SIGTERM, before)


def settings(data, *more):
    return [word for setting in [*tiny_settings(data), *more] for word in ("--set", setting)]


@pytest.fixture(scope="module")
def combined(runs, data):
    """The command on one configuration with a loader process: (what it said, what it wrote)."""
    options = settings(data, *CURRICULUM, "budget.hours=0.01", "runtime.workers=1")
    process = start(runs, "paper/combined", *options, "--minutes", "0.01")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, json.loads((runs / "plan-combined.json").read_text())


def test_every_size_is_measured_and_every_field_is_there(combined):
    _, plan = combined
    (arm,) = plan["arms"]
    assert [size["image_size"] for size in arm["measured"]["sizes"]] == SIZES
    for size in arm["measured"]["sizes"]:
        assert size["batch_size"] == 8
        for what in ("loader", "step", "together"):
            assert size[what]["images_per_s"] > 0
            assert len(size[what]["seconds"]) == arm["measured"]["rounds"]
        assert 0 <= size["together"]["data_wait_share"] <= 1
        assert size["first_step_s"] >= 0
        assert size["memory_bytes"] > 2**20
        assert size["sets_the_pace"] in ("loader", "step")
        assert size["would_lift_it"]
    assert arm["measured"]["evaluation_s"] > 0
    assert arm["measured"]["checkpoint_s"] > 0
    assert arm["measured"]["checkpoint_bytes"] > 4 * 4 * arm["parameters"]  # weights, average, two moments
    assert plan["environment"]["dataset"]["train_images"] == 24


def test_the_predicted_stages_add_up_to_the_budget(combined):
    _, plan = combined
    prediction = plan["arms"][0]["prediction"]
    assert [stage["image_size"] for stage in prediction["stages"]] == SIZES
    assert prediction["last_size_reached"]
    assert prediction["never_reached"] == []
    assert prediction["train_hours"] == pytest.approx(0.01, rel=0.05)
    lengths = [stage["end_hours"] - stage["begin_hours"] for stage in prediction["stages"]]
    assert sum(lengths) == pytest.approx(prediction["train_hours"])
    epochs = [stage["end_epochs"] - stage["begin_epochs"] for stage in prediction["stages"]]
    assert sum(epochs) == pytest.approx(prediction["epochs"])
    phases = ("train_hours", "evaluation_hours", "checkpoint_hours", "setup_hours")
    assert sum(prediction[phase] for phase in phases) == pytest.approx(prediction["wall_hours"])
    assert plan["total"]["wall_hours"] == pytest.approx(prediction["wall_hours"])


def test_what_it_prints_holds_every_size_and_says_what_it_is_not(combined, runs):
    out, plan = combined
    assert "measuring combined: round 1 of 3" in out
    for size in SIZES:
        assert out.count(f"{size} px") >= 2  # measured, and when it begins
    assert "Page cache" in out
    assert "smoke run" in out.lower()
    assert "none of these is the paper's DeiT-S" in out
    assert report.to_text(plan) in out
    assert (runs / "plan-combined.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(runs / "plan-combined.png") as figure:
        assert min(figure.size) > 500


def test_the_file_tells_nothing_of_where_things_lie(combined, data, runs):
    text = json.dumps(combined[1])
    for path in (data, data.parent, runs, Path.home(), Path.cwd()):
        assert f"{path}/" not in text
        assert f'"{path}"' not in text


def test_nothing_is_left_in_the_folder_of_runs(combined, runs):
    assert combined
    left = {path.name for path in runs.iterdir()}
    assert left <= {"plan-combined.json", "plan-combined.png", "plan-combined.pdf", "plan-quick.json"} | {
        "plan-quick.png",
        "plan-quick.pdf",
    }


def test_without_a_name_the_four_arms_and_what_they_cost_together(vit24h_plan, runs, data):
    done = vit24h_plan(*settings(data, "budget.steps=5"), "--gpu-hours", "0.001", "--minutes", "0.01")
    assert done.returncode == 0, done.stderr
    plan = json.loads((runs / "plan-quick.json").read_text())
    assert [arm["name"] for arm in plan["arms"]] == ["baseline", "locality", "curriculum", "combined"]
    for arm in plan["arms"]:
        assert arm["prediction"]["counted_hours"] == pytest.approx(0.001, rel=0.2)
    total = sum(arm["prediction"]["wall_hours"] for arm in plan["arms"])
    assert plan["total"]["wall_hours"] == pytest.approx(total)
    baseline, _, curriculum, _ = (arm["measured"]["sizes"] for arm in plan["arms"])
    assert baseline[-1] == curriculum[-1]  # the same model at the same size: measured once
    assert "All" in done.stdout
    assert "Page cache" in done.stdout


def plans(data, *more, **question):
    config = load_config("paper/combined", profile="quick", overrides=[*tiny_settings(data), *more])
    return config, planning.Question(**question)


def test_epochs_of_hours_and_hours_of_epochs_are_one_answer(combined):
    """From the same measured costs: the hours that the predicted epochs take are the budget again."""
    _, plan = combined
    arm = plan["arms"][0]
    config = config_from_dict(arm["config"], "the plan")
    costs = _costs_of(arm)
    epochs = planning.predict(config, costs, arm["samples_per_epoch"]).epochs
    assert epochs == pytest.approx(arm["prediction"]["epochs"], rel=1e-6)
    assert planning.hours_for(config, costs, arm["samples_per_epoch"], epochs) == pytest.approx(0.01, rel=1e-3)


def _costs_of(arm):
    found = arm["measured"]
    sizes = tuple(
        planning.SizeCost(
            size["image_size"],
            size["batch_size"],
            size["batch_size"] / size["together"]["images_per_s"],
            size["first_step_s"],
        )
        for size in found["sizes"]
    )
    return planning.Costs(sizes, found["evaluation_s"], found["checkpoint_s"], found["setup_s"])


def test_target_epochs_says_how_many_hours(vit24h_plan, data, tmp_path):
    out = tmp_path / "asked.json"
    options = settings(data, *CURRICULUM, "budget.hours=1")
    done = vit24h_plan("combined", *options, "--target-epochs", "30", "--minutes", "0.01", "--out", str(out))
    assert done.returncode == 0, done.stderr
    prediction = json.loads(out.read_text())["arms"][0]["prediction"]
    assert prediction["epochs"] == pytest.approx(30, rel=1e-3)
    assert prediction["budget"]["hours"] == pytest.approx(prediction["train_hours"], rel=1e-3)
    assert "30.0 epochs take" in done.stdout
    assert out.with_suffix(".png").is_file()


def test_a_last_size_that_the_budget_never_comes_to_is_said(vit24h_plan, data, tmp_path):
    out = tmp_path / "short.json"
    options = settings(data, *BY_EPOCHS, "budget.hours=0.0005")
    done = vit24h_plan("combined", *options, "--minutes", "0.01", "--out", str(out))
    assert done.returncode == 0, done.stderr
    prediction = json.loads(out.read_text())["arms"][0]["prediction"]
    assert prediction["never_reached"] == SIZES[1:]
    assert not prediction["last_size_reached"]
    assert prediction["hours_to_each_size"]["32"] > prediction["train_hours"]
    assert "16 to 32 px never reached. It would begin after" in done.stdout
    assert "never reached" in done.stdout.split("Predicted")[1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["combined", "--data", "nowhere-at-all"], "does not exist"),
        (["combine"], "did you mean combined?"),
        (["combined", "--gpu-hours", "-3"], "above 0"),
        (["combined", "--gpu-hours", "1", "--target-epochs", "2"], "not allowed with"),
        (["combined", "--profile", "full"], "--data"),
    ],
)
def test_what_the_user_can_mend_ends_with_2_and_one_line(vit24h_plan, words, told):
    done = vit24h_plan(*words)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_place_that_cannot_be_written_is_named(vit24h_plan, data, tmp_path):
    done = vit24h_plan("baseline", *settings(data), "--set", "budget.steps=5", "--out", str(tmp_path))
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_leaves_no_process_and_nothing_half_written(data, tmp_path, number, status):
    options = settings(data, *CURRICULUM, "runtime.workers=2", "budget.hours=1")
    process = start(tmp_path, "combined", *options, "--minutes", "5")
    try:
        workers = _wait_for_children(process.pid)
        os.killpg(process.pid, number)  # as a terminal does: the loader's processes get it too
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status, err
    assert "Traceback" not in err
    assert workers
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert list(tmp_path.iterdir()) == []


def _wait_for_children(parent):
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        if len(children) >= 2:
            return children
        time.sleep(0.02)
    raise AssertionError("no loader processes came up")


# -- measuring ------------------------------------------------------------------------------------------------------


def test_every_slice_reads_other_images(data, monkeypatch):
    """Else all but the first one would read what the page cache got from the first."""
    asked = []
    real = inputs.train_loader

    def remembering(config, dataset, order, plan, **where):
        asked.append((where["start_epoch"], plan(0, 0)))
        return real(config, dataset, order, plan, **where)

    monkeypatch.setattr(inputs, "train_loader", remembering)
    config, question = plans(data, *CURRICULUM, "budget.hours=0.01")
    planning.plan([config], question, minutes=0.001, folder=data.parent)
    epochs = [epoch for epoch, _ in asked]
    assert len(set(epochs)) == len(epochs)
    assert len(epochs) >= 2 * len(SIZES)
    assert {plan for _, plan in asked} == {BatchPlan(size, 8) for size in SIZES}


def test_the_sizes_take_turns(data):
    turns = []
    config, question = plans(data, *CURRICULUM, "budget.hours=0.01")
    planning.plan(
        [config],
        question,
        minutes=0.001,
        folder=data.parent,
        progress=lambda _names, number, _rounds, size: turns.append((number, size)),
    )
    rounds = max(number for number, _ in turns)
    assert turns == [(number, size) for number in range(1, rounds + 1) for size in SIZES]


def test_a_disk_that_takes_no_checkpoint_does_not_end_the_plan(data, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vit24h.engine.plan.save_checkpoint", full)
    config, question = plans(data, "budget.steps=6")
    found = planning.plan([config], question, minutes=0.001, folder=tmp_path)
    assert found["arms"][0]["measured"]["checkpoint_s"] is None
    assert "could not be written" in report.to_text(found)
    assert list(tmp_path.iterdir()) == []


class _OneCore:
    """Stands for a loader with one worker, and a step, that share a core: at equal parts while both have work."""

    def __init__(self, monkeypatch, *, loader_s, step_s, ahead):
        self.loader_s, self.step_s, self.ahead = loader_s, step_s, ahead
        self.now, self.ready = 0.0, 0.0  # batches made and not yet used, with the part of the one at work
        monkeypatch.setattr("vit24h.engine.plan.time.perf_counter", lambda: self.now)
        monkeypatch.setattr("vit24h.engine.plan.time.sleep", self.load)

    def load(self, seconds):
        self.now += seconds
        self.ready = min(self.ahead, self.ready + seconds / self.loader_s)

    def step(self, _batch):
        both_s = min(self.step_s, (self.ahead - self.ready) * self.loader_s)  # of work, for each of the two
        self.now += both_s
        self.load(both_s)
        self.now += self.step_s - both_s

    def __enter__(self):
        self.ready = 0.0
        return self

    def __exit__(self, *_):
        pass

    def __next__(self):
        self.load(max(0.0, 1 - self.ready) * self.loader_s)
        self.ready -= 1


@pytest.mark.parametrize("loader_s", [0.1, 0.7, 0.9, 1.5])
def test_what_fills_the_queue_at_first_is_not_taken_for_the_pace(data, monkeypatch, loader_s):
    """On a shared core a step takes what making one batch takes, too; not what making five does."""
    config, _ = plans(data, "runtime.workers=1", "budget.steps=6")
    bench = _Bench(config, inputs.open_configured_dataset(config.data), torch.device("cpu"))
    core = _OneCore(monkeypatch, loader_s=loader_s, step_s=1.0, ahead=config.runtime.prefetch_batches)
    monkeypatch.setattr(bench, "_loader", lambda _size: core)
    monkeypatch.setattr(bench, "_train_on", core.step)
    monkeypatch.setattr(bench, "_to_device", lambda batch: batch)
    size = SizeMeasurement(8, 8, loader_s=[loader_s], step_s=[1.0])
    bench._together(size, 10.0)
    assert size.together_s == [pytest.approx(loader_s + 1.0, rel=0.02)]


class _Clock:
    """Stands for the clock of the plan's module; whatever takes time moves it on."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("vit24h.engine.plan.time.perf_counter", lambda: self.now)

    def evaluation_s(self, *, images, batches, late_s, decode_s, compute_s, workers, seconds):
        """As estimated from `batches` of ten: the first one of each worker after `late_s`, all others in `decode_s`."""

        def load():
            for number in range(batches):
                self.now += (late_s if number == 0 else 0.0) if number < workers else decode_s
                yield None, range(10)

        marks = _Marks()
        for _ in marks.note(load(), seconds, at_least=2 * workers):
            self.now += compute_s
        return marks.drawn_out(images, workers, end=self.now)


@pytest.mark.parametrize("seconds", [0.0, 5.0, 8.0, 1000.0])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(("decode_s", "compute_s"), [(0.0, 1.0), (1.0, 0.0), (0.5, 0.25)])
def test_an_evaluation_is_drawn_out_at_the_pace_after_its_late_first_batches(
    monkeypatch, seconds, workers, decode_s, compute_s
):
    found = _Clock(monkeypatch).evaluation_s(
        images=1000, batches=30, late_s=2.0, decode_s=decode_s, compute_s=compute_s, workers=workers, seconds=seconds
    )
    true = 2.0 + 100 * compute_s + (100 - workers) * decode_s  # a hundred batches of ten
    if seconds:  # else a single batch has to do, and it was a late one
        assert found == pytest.approx(true)
    else:
        assert found >= true


def test_a_whole_evaluation_is_told_as_it_was(monkeypatch):
    found = _Clock(monkeypatch).evaluation_s(
        images=60, batches=6, late_s=2.0, decode_s=1.0, compute_s=1.0, workers=2, seconds=1000.0
    )
    assert found == pytest.approx(2.0 + 4 * 1.0 + 6 * 1.0)


def test_one_batch_of_an_evaluation_is_drawn_out_as_it_is(monkeypatch):
    found = _Clock(monkeypatch).evaluation_s(
        images=30, batches=1, late_s=2.0, decode_s=1.0, compute_s=1.0, workers=4, seconds=1000.0
    )
    assert found == pytest.approx(3 * 3.0)


def test_evaluation_takes_another_part_of_the_images_each_turn(data, monkeypatch):
    parts = []
    real = inputs.eval_loader

    def remembering(config, dataset, **where):
        parts.append((where["rank"], where["world_size"]))
        return real(config, dataset, **where)

    monkeypatch.setattr(inputs, "eval_loader", remembering)
    config, _ = plans(data, "budget.steps=6")
    dataset = inputs.open_configured_dataset(config.data)
    bench = _Bench(config, dataset, torch.device("cpu"))
    bench.prepare(1)
    seconds = [bench.evaluation_s(turn, 0.01) for turn in range(3)]
    assert parts == [(0, 3), (1, 3), (2, 3)]
    assert min(seconds) > 0


# -- what it says ---------------------------------------------------------------------------------------------------


H200 = {"gpu": {"name": "NVIDIA H200"}, "cpu": {"model": "a CPU", "cores": 16}, "memory_gib": 128.0}
IMAGENET = {"train_images": 1_281_167, "val_images": 50_000, "classes": 1000}


def made_up(
    name="baseline",
    *,
    images_per_s=1000.0,
    loader=4000.0,
    machine=H200,
    workers=8,
    packing=None,
    config=None,
    disk=None,
    image_bytes=110_000,
):
    """A plan as if it had been measured at these speeds, the same at each size."""
    config = config or load_config(f"paper/{name}")
    loader_s, step_s = 64 / loader, 64 / images_per_s
    slower_s = max(loader_s, step_s)
    measured = Measurement(
        sizes={
            size: SizeMeasurement(size, 64, [loader_s], [step_s], [slower_s], [1 - step_s / slower_s], step_s, 2**30)
            for size in config.image_sizes
        },
        evaluation_s=20.0,
        checkpoint_s=1.0,
        checkpoint_bytes=2**28,
        setup_s=5.0,
        measured_s=60.0,
        rounds=3,
        workers=workers,
        samples_per_epoch=1_281_024,
        facts={"precision": "fp16", "parameters": 22_050_664},
        environment={**machine, "dataset": {**IMAGENET, "packing": packing}},
        disk=disk or DiskReads(0, 1000),
        image_bytes=image_bytes,
    )
    arm = planning._arm(config, measured, planning.Question())
    return {
        "question": {"gpu_hours": None, "target_epochs": None},
        "environment": measured.environment,
        "arms": [arm],
        "paper_equivalent": planning._paper_equivalent([arm]),
    }


@pytest.mark.parametrize(
    ("machine", "told"),
    [
        ({"loader": 4000, "images_per_s": 1000}, "the step sets the pace. What would lift it: nothing in loading."),
        ({"loader": 500, "images_per_s": 900}, "runtime.workers=15: there are the cores for it"),
        (
            {"loader": 500, "images_per_s": 4000},
            "about 64 CPU cores for workers, where there are 15; packed images (vit24h pack); ",
        ),
        ({"loader": 500, "images_per_s": 4000, "packing": {"short_side": 256}}, "there are 15; augmentation.randaug"),
        ({"workers": 0}, "What would lift it: loader processes (runtime.workers=auto)"),
        ({"loader": 4000, "images_per_s": 10, "machine": {**H200, "gpu": None}}, "nothing in loading; a GPU"),
    ],
)
def test_who_sets_the_pace_and_what_would_lift_it(machine, told):
    assert told in report.to_text(made_up(**machine))


@pytest.mark.parametrize(
    ("cache", "told"),
    [
        ({}, "Page cache: held the images while the loader was measured (0 % of 1,000 images"),
        (
            {"disk": DiskReads(110_000 * 1000, 1000)},
            "did not hold them while the loader was measured (100 % of 1,000 images",
        ),
        ({"disk": DiskReads(110_000 * 300, 1000)}, "held some of them while the loader was measured (30 %"),
        ({"disk": DiskReads(known=False)}, "does not tell how much of the images came from the disk"),
        ({"image_bytes": 110_000}, "131.2 GiB of images, 128 GiB of memory: it cannot hold them all"),
        (
            {"image_bytes": 60_000, "disk": DiskReads(60_000_000, 1000)},
            "the loader may be faster from the second epoch on",
        ),
    ],
)
def test_a_page_cache_is_never_taken_for_a_disk_in_silence(cache, told):
    assert told in report.to_text(made_up(**cache))


def test_the_papers_day_as_predicted_for_a_fast_gpu():
    plan = made_up("combined", images_per_s=2000)
    text = report.to_text(plan)
    assert plan["arms"][0]["prediction"]["last_size_reached"]
    assert "224 px  " in text
    assert "ImageNet-1k" in text
    assert "smoke" not in text.lower()


# -- paper-equivalent time ------------------------------------------------------------------------------------------


def test_the_authors_speed_is_an_epoch_in_its_hours():
    least, most = deit_s_images_per_s()
    assert least == pytest.approx(1_281_024 / (1.25 * 3600))
    assert most == pytest.approx(1_281_024 / (1.15 * 3600))


def test_paper_equivalent_hours():
    low, high = deit_s_images_per_s()
    assert equivalent_hours(low)[0] == pytest.approx(24)  # as fast as they were at their slowest
    assert equivalent_hours(high)[1] == pytest.approx(24)
    least, most = equivalent_hours(10 * low)
    assert least == pytest.approx(2.4)
    assert most / least == pytest.approx(1.25 / 1.15)
    assert equivalent_hours(low, hours=1)[0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "profile", "it_is"),
    [
        ("baseline", "full", True),
        ("curriculum", "full", True),
        ("baseline", "paper-epochs", True),
        ("locality", "full", False),
        ("localvit", "full", False),
        ("baseline", "mini", False),
        ("baseline", "quick", False),
    ],
)
def test_what_is_deit_s(name, profile, it_is):
    assert is_deit_s(load_config(f"paper/{name}", profile=profile).to_dict()["model"]) is it_is


def test_a_plan_tells_paper_equivalent_time_of_deit_s_alone():
    low, high = deit_s_images_per_s()
    plan = made_up("baseline", images_per_s=1000.0)
    assert plan["paper_equivalent"]["hours"] == [24 * low / 1000, 24 * high / 1000]
    assert "the authors' 24 h are 6.83–7.43 h here" in report.to_text(plan)
    assert made_up("curriculum")["paper_equivalent"]["images_per_s"] == 1000.0  # at its last size, 224 px
    assert made_up("locality")["paper_equivalent"]["hours"] is None
    mini = made_up("baseline", config=load_config("paper/baseline", profile="mini"))
    assert mini["paper_equivalent"]["hours"] is None


def test_a_report_tells_it_of_a_record_of_deit_s_and_of_no_other(tmp_path):
    runs = {
        profile: load_run(write_run(tmp_path / profile, "baseline", profile=profile, machine="h200"))
        for profile in ("full", "mini", "quick")
    }
    (full,), (mini,), (quick,) = (comparisons([run]) for run in runs.values())
    told = tables.results([full]).to_markdown()
    assert "Paper-equivalent time: the authors' 24 h are" in told
    assert "Paper-equivalent" in tables.budget_buys([full]).to_markdown()
    for group in (mini, quick):
        assert "Paper-equivalent" not in tables.results([group]).to_markdown()
        assert "Paper-equivalent" not in tables.budget_buys([group]).to_markdown()


def test_without_deit_s_in_the_records_nothing_is_told(tmp_path):
    run = load_run(write_run(tmp_path, "locality", profile="full", machine="h200"))
    assert "Paper-equivalent" not in tables.results(comparisons([run])).to_markdown()


def test_a_record_of_the_authors_speed_is_worth_its_own_hours(tmp_path):
    """So many images a second that the equivalent of 24 h is about 24 h."""
    run = load_run(write_run(tmp_path, "baseline", profile="full", machine="a100", waiting=0.0))
    (at_224,) = time_by_size(run)
    least, most = equivalent_hours(at_224.images_per_s)
    text = tables.results(comparisons([run])).to_markdown()
    assert f"{least:.2f}–{most:.2f} h here" in text or f"{least:.1f}–{most:.1f} h here" in text
