"""Faults on the way, each made to happen for real: what the run does about them, says, and loses (mostly nothing)."""

import contextlib
import io
import itertools
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import simplejpeg
import torch
from safetensors.torch import load_file

from tiny import CURRICULUM, tiny_config, tiny_settings, write_images
from vit24h.engine import train as train_module
from vit24h.engine.checkpoint import load_newest_checkpoint
from vit24h.engine.interruption import Interrupted
from vit24h.engine.step import TrainStep
from vit24h.engine.train import TrainingFailed, train
from vit24h.errors import UserError
from vit24h.progress import TrainDisplay
from vit24h.records import load_run
from vit24h.records.reader import read_rows

STEPS = 36
EVERY_FEW_STEPS = ["runtime.checkpoint_minutes=0.0005"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def own_data(tmp_path):
    """The same images, to do things to."""
    return write_images(tmp_path / "images")


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("undisturbed")
    train(tiny_config(data, steps=STEPS), run_dir)
    return run_dir


class Told(TrainDisplay):
    """What a user sees of a run, in a log."""

    def __init__(self):
        self.text = io.StringIO()
        super().__init__("tiny", self.text)


def after_step(monkeypatch, actions):
    """Do something right after a step, counted from 1 in this process."""
    original, count = TrainStep.__call__, itertools.count()  # 0 is the trial at the start

    def call(self, batch, learning_rate):
        loss = original(self, batch, learning_rate)
        actions.get(next(count), lambda: None)()
        return loss

    monkeypatch.setattr(TrainStep, "__call__", call)


def later(seconds, action):
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def assert_same_result(run_dir, undisturbed):
    one, other = load_file(undisturbed / "model.safetensors"), load_file(run_dir / "model.safetensors")
    for name in one:
        assert torch.equal(one[name], other[name]), name
    expected, found = load_run(undisturbed), load_run(run_dir)
    for event in ("stage", "epoch", "eval"):
        assert [facts(row) for row in found.rows_of(event)] == [facts(row) for row in expected.rows_of(event)]
    assert not list(run_dir.rglob("*.writing"))


def facts(row):
    return {key: row[key] for key in row.keys() - {"time", "clock", "images_per_s", "data_wait_s", "epoch_s", "link"}}


def incidents(run_dir):
    return Counter(row["kind"] for row in load_run(run_dir).rows_of("incident"))


# -- the disk -------------------------------------------------------------------------------------------------------


def fill(disk):
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))


def test_a_full_disk_costs_neither_the_checkpoint_before_nor_a_row(data, undisturbed, small_disk, monkeypatch):
    run_dir = small_disk / "run"
    checkpoints = {}

    def note():
        state = load_newest_checkpoint(run_dir / "checkpoints", torch.device("cpu"), damaged=pytest.fail)
        checkpoints["before"] = state["position"]["step"], len(read_rows(run_dir / "log.jsonl"))
        fill(small_disk)

    def look():
        state = load_newest_checkpoint(run_dir / "checkpoints", torch.device("cpu"), damaged=pytest.fail)
        checkpoints["full"] = state["position"]["step"], len(read_rows(run_dir / "log.jsonl"))
        (small_disk / "filler").unlink()

    after_step(monkeypatch, {6: note, 30: look})
    told = Told()
    train(tiny_config(data, *EVERY_FEW_STEPS, steps=STEPS), run_dir, display=told)

    assert_same_result(run_dir, undisturbed)
    (before, _), (full, rows_when_full) = checkpoints["before"], checkpoints["full"]
    assert before <= full <= 7  # intact all the time
    found = incidents(run_dir)
    assert found["checkpoint_not_saved"] > 1
    assert found["log_waits"] == 1
    # At least one row came when there was no room, was kept, and is on record with the time at which it came.
    rows = read_rows(run_dir / "log.jsonl")
    assert sum(row["step"] < 30 for row in rows) > rows_when_full
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)
    assert any(row["event"] == "checkpoint" and row["step"] > 30 for row in rows)  # the next save
    assert "No space left on device" in told.text.getvalue()


def test_a_disk_that_is_full_at_the_end_is_waited_for(data, undisturbed, small_disk, monkeypatch):
    run_dir = small_disk / "run"

    def fill_for_a_while():
        fill(small_disk)
        later(2, (small_disk / "filler").unlink)

    after_step(monkeypatch, {STEPS: fill_for_a_while})
    train(tiny_config(data, steps=STEPS), run_dir)
    assert_same_result(run_dir, undisturbed)
    assert incidents(run_dir)["waiting_to_write"] == 1


def test_a_disk_that_stays_full_ends_the_run_in_words_and_loses_nothing_saved(
    data, undisturbed, small_disk, monkeypatch
):
    run_dir = small_disk / "run"
    after_step(monkeypatch, {STEPS - 3: lambda: fill(small_disk)})
    with pytest.raises(TrainingFailed, match=r"cannot be written \(No space left on device\).*make room"):
        train(tiny_config(data, *EVERY_FEW_STEPS, "runtime.fault_wait_minutes=0.01", steps=STEPS), run_dir)
    monkeypatch.undo()
    (small_disk / "filler").unlink()
    train(tiny_config(data, steps=STEPS), run_dir)
    assert_same_result(run_dir, undisturbed)


def test_a_stop_while_a_full_disk_is_waited_for_is_obeyed(data, undisturbed, small_disk, monkeypatch):
    def fill_and_stop():
        fill(small_disk)
        later(2, lambda: os.kill(os.getpid(), signal.SIGTERM))

    after_step(monkeypatch, {STEPS: fill_and_stop})
    with pytest.raises(Interrupted) as stopped:
        train(tiny_config(data, *EVERY_FEW_STEPS, steps=STEPS), small_disk / "run")
    assert not stopped.value.saved  # and says so
    monkeypatch.undo()
    (small_disk / "filler").unlink()
    train(tiny_config(data, steps=STEPS), small_disk / "run")
    assert_same_result(small_disk / "run", undisturbed)


def test_a_folder_made_read_only_under_a_run_is_written_again_when_it_can_be(
    data, undisturbed, small_disk, monkeypatch
):
    def remount(how):
        subprocess.run(["mount", "-o", f"remount,{how}", str(small_disk)], check=True)

    after_step(monkeypatch, {6: lambda: remount("ro"), 30: lambda: remount("rw")})
    told = Told()
    train(tiny_config(data, *EVERY_FEW_STEPS, steps=STEPS), small_disk / "run", display=told)
    assert_same_result(small_disk / "run", undisturbed)
    found = incidents(small_disk / "run")
    assert found["log_waits"] == 1
    assert found["checkpoint_not_saved"] > 1
    assert "Read-only file system" in told.text.getvalue()


def test_a_folder_that_is_read_only_at_the_start_is_one_clear_error(data, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match=r"cannot write there \(Read-only file system\)"):
        train(tiny_config(data), small_disk / "run")


# -- the dataset ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_that_goes_and_comes_back_is_waited_for(workers, own_data, undisturbed, tmp_path, monkeypatch):
    away = tmp_path / "away"

    def go():
        own_data.rename(away)
        later(1.5, lambda: away.rename(own_data))

    after_step(monkeypatch, {4: go})
    told = Told()
    train(tiny_config(own_data, f"runtime.workers={workers}", steps=STEPS), tmp_path / "run", display=told)
    assert_same_result(tmp_path / "run", undisturbed)
    found = incidents(tmp_path / "run")
    # Twice where an evaluation met it first: what workers had prepared by then is stale.
    assert 1 <= found["dataset_gone"] == found["dataset_back"] <= 2
    assert "corrupt_image" not in found
    assert "nor is there anything else of its dataset" in told.text.getvalue()


def test_a_dataset_that_goes_in_an_evaluation_is_waited_for(own_data, undisturbed, tmp_path, monkeypatch):
    away = tmp_path / "away"

    def go():
        (own_data / "val").rename(away)
        later(1.5, lambda: away.rename(own_data / "val"))

    after_step(monkeypatch, {6: go})  # an evaluation follows
    train(tiny_config(own_data, steps=STEPS), tmp_path / "run")
    assert_same_result(tmp_path / "run", undisturbed)
    assert incidents(tmp_path / "run") == {"dataset_gone": 1, "dataset_back": 1}


def test_a_dataset_that_stays_away_ends_the_run_saved(own_data, undisturbed, tmp_path, monkeypatch):
    away = tmp_path / "away"
    after_step(monkeypatch, {10: lambda: own_data.rename(away)})
    with pytest.raises(
        TrainingFailed, match=r"images/train/.*cannot be read.*not back after 0.01 minutes: bring it back"
    ):
        train(tiny_config(own_data, "runtime.fault_wait_minutes=0.01", steps=STEPS), tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "log.jsonl")
    assert (rows[-1]["event"], rows[-1]["reason"], rows[-1]["saved"], rows[-1]["step"]) == ("end", "failed", True, 10)
    monkeypatch.undo()
    away.rename(own_data)
    result = train(tiny_config(own_data, steps=STEPS), tmp_path / "run")
    assert_same_result(tmp_path / "run", undisturbed)
    assert result["clock"]["lost_s"] == 0


def test_a_stop_while_the_dataset_is_away_is_obeyed_at_once(own_data, tmp_path, monkeypatch):
    def go():
        own_data.rename(tmp_path / "away")
        later(1, lambda: os.kill(os.getpid(), signal.SIGTERM))

    after_step(monkeypatch, {10: go})
    begin = time.monotonic()
    with pytest.raises(Interrupted) as stopped:
        train(tiny_config(own_data, steps=STEPS), tmp_path / "run")
    assert time.monotonic() - begin < 30
    assert stopped.value.saved


def test_one_corrupt_image_in_500_ends_the_run_with_the_list(tmp_path):
    data = write_images(tmp_path / "images", classes=2, train=500)
    for name in ("class0/17.JPEG", "class1/400.JPEG"):
        path = data / "train" / name
        path.write_bytes(path.read_bytes()[:100])
    settings = ["data.epoch_multiple=8", "data.repeated_augmentation=1"]
    with pytest.raises(TrainingFailed, match=r"2 corrupt images.*more than 1 in 1000: restore them.*JPEG, .*JPEG"):
        train(tiny_config(data, *settings, arm="baseline", steps=1000), tmp_path / "run")
    assert incidents(tmp_path / "run") == {"corrupt_image": 2}


# -- the loader -----------------------------------------------------------------------------------------------------


def kill_a_worker():
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_killed_by_the_system_is_replaced(data, undisturbed, tmp_path, monkeypatch):
    after_step(monkeypatch, {4: kill_a_worker})
    told = Told()
    train(tiny_config(data, "runtime.workers=2", steps=STEPS), tmp_path, display=told)
    assert_same_result(tmp_path, undisturbed)
    assert incidents(tmp_path) == {"loader_rebuilt": 1}
    assert "a loader process was killed" in told.text.getvalue()


@pytest.mark.slow
def test_workers_that_are_killed_time_and_again_end_the_run_saved(data, undisturbed, tmp_path, monkeypatch):
    after_step(monkeypatch, dict.fromkeys(range(3, STEPS), kill_a_worker))
    settings = ["runtime.workers=1", "runtime.prefetch_batches=1"]
    with pytest.raises(TrainingFailed, match=r"a loader process was killed.*4th time within an hour"):
        train(tiny_config(data, *settings, steps=STEPS), tmp_path)
    assert incidents(tmp_path) == {"loader_rebuilt": 3}
    assert load_run(tmp_path).rows[-1]["saved"]
    monkeypatch.undo()
    train(tiny_config(data, steps=STEPS), tmp_path)
    assert_same_result(tmp_path, undisturbed)


@pytest.fixture
def hanging(own_data):
    """An image that hangs whoever reads it, as on a disk that does not answer; `mend` lets the reading go on."""
    path = own_data / "train" / "class1" / "3.JPEG"
    content = path.read_bytes()

    class Hanging:
        def hang(self):
            path.unlink()
            os.mkfifo(path)

        def mend(self):
            with path.open("wb") as pipe:  # waits for the reader
                intact = path.with_name("beside")
                intact.write_bytes(content)
                intact.replace(path)
                pipe.write(content)

    return Hanging()


def test_a_stalled_loader_is_told_with_where_it_hangs_until_it_moves(
    own_data, hanging, undisturbed, tmp_path, monkeypatch
):
    after_step(monkeypatch, {3: hanging.hang})
    told, log = Told(), tmp_path / "run" / "log.jsonl"
    mended = []

    def mend_after_two_reports():
        while sum(row.get("kind") == "stalled" for row in (read_rows(log) if log.exists() else [])) < 2:
            time.sleep(0.05)
        hanging.mend()
        mended.append(True)

    thread = threading.Thread(target=mend_after_two_reports, daemon=True)
    thread.start()
    settings = ["runtime.workers=2", "runtime.prefetch_batches=1", "runtime.stall_minutes=0.02"]
    train(tiny_config(own_data, *settings, steps=STEPS), tmp_path / "run", display=told)
    assert mended
    assert_same_result(tmp_path / "run", undisturbed)
    stalled = [row for row in load_run(tmp_path / "run").rows_of("incident") if row["kind"] == "stalled"]
    assert len(stalled) >= 2
    assert "loader.py" in stalled[0]["at"]  # the main process waits there ...
    assert any("class1/3.JPEG" in worker and "sleeping" in worker for worker in stalled[0]["workers"])  # ... for that
    assert "stalled: minutes 0.0" in told.text.getvalue()


def test_a_stop_reaches_a_run_whose_loader_hangs(own_data, hanging, tmp_path, monkeypatch):
    after_step(monkeypatch, {3: hanging.hang})
    later(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    begin = time.monotonic()
    with pytest.raises(Interrupted) as stopped:
        train(tiny_config(own_data, "runtime.workers=1", "runtime.prefetch_batches=1", steps=10**6), tmp_path / "run")
    assert time.monotonic() - begin < 30
    assert stopped.value.saved
    assert not multiprocessing.active_children()


# -- the machine ----------------------------------------------------------------------------------------------------

CLOCK_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t jump(void) {
    const char *flag = getenv("SET_BACK_WHILE");
    return flag && !access(flag, F_OK) ? -86400 : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += jump();
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
    int status = real(now, zone);
    now->tv_sec += jump();
    return status;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""


def vit24h_train(data, run_dir, *settings, arm="combined", **popen):
    """The real command."""
    words = [word for setting in [*tiny_settings(data), *settings] for word in ("--set", setting)]
    if arm in ("curriculum", "combined"):
        words += [word for setting in CURRICULUM for word in ("--set", setting)]
    command = [sys.executable, "-m", "vit24h", "train", f"paper/{arm}", "--profile", "quick", "--run-dir", str(run_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **popen.pop("environment", {})}
    return subprocess.Popen(
        [*command, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen
    )


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


def test_a_machine_whose_clock_is_set_back_neither_gains_nor_loses_budget(data, tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler, to set the clock back for one process only")
    (tmp_path / "shim.c").write_text(CLOCK_SHIM)
    shim, flag, log = tmp_path / "shim.so", tmp_path / "back", tmp_path / "run" / "log.jsonl"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(shim), str(tmp_path / "shim.c"), "-ldl"], check=True)
    environment = {"LD_PRELOAD": str(shim), "SET_BACK_WHILE": str(flag)}
    budget_s = 4
    budget = [f"budget.hours={budget_s / 3600}", "budget.steps=null", "runtime.checkpoint_minutes=0.005"]
    process = vit24h_train(data, tmp_path / "run", *budget, environment=environment)
    wait_for(lambda: log.exists() and any(row["event"] == "epoch" for row in read_rows(log)))
    flag.write_text("")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err

    run = load_run(tmp_path / "run")
    days = {row["time"][:10] for row in run.rows}
    assert len(days) == 2  # it did go back
    assert [row["step"] for row in run.rows] == sorted(row["step"] for row in run.rows)
    walls = [row["clock"]["wall_s"] for row in run.rows]
    assert walls == sorted(walls)
    assert budget_s <= run.result["clock"]["train_s"] < budget_s + 2
    assert walls[-1] < 100
    saves = [row["clock"]["wall_s"] for row in run.rows_of("checkpoint")]
    assert len(saves) > 5  # the interval goes on as well


def test_out_of_memory_at_the_largest_size_is_found_at_the_start(data, tmp_path):
    """By a real limit of memory; on a GPU its own."""
    in_use = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmSize:")
    )
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 300 * 2**20, limits[1]))
    try:
        with pytest.raises(UserError, match=r"image size 1024 with batches of 8.*set optimizer.batch_size lower"):
            train(
                tiny_config(
                    data,
                    "model.image_size=1024",
                    "curriculum.size_step=1016",
                    "curriculum.budget_fraction_per_stage=0.5",
                    steps=STEPS,
                ),
                tmp_path,
            )
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert not read_rows(tmp_path / "log.jsonl")


def test_the_trial_at_the_start_leaves_no_trace_in_the_run(data, undisturbed, tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(train_module, "try_largest_step", lambda *_: tried.append(True))
    train(tiny_config(data, steps=STEPS), tmp_path)
    assert tried
    assert_same_result(tmp_path, undisturbed)


def test_a_loss_that_is_really_not_finite_goes_back_once_and_stops_with_the_reason(data, tmp_path):
    settings = ["optimizer.learning_rate=1.0e+30", "optimizer.min_learning_rate=0"]
    with pytest.raises(TrainingFailed, match=r"not finite for 10 steps in a row.*lower optimizer.learning_rate"):
        train(tiny_config(data, *settings, arm="baseline", steps=60), tmp_path)
    found = incidents(tmp_path)
    assert found["rollback"] == 1
    assert found["non_finite_loss"] == 20
    assert load_run(tmp_path).state == "failed"


# -- stops ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_in_an_evaluation_saves_within_seconds(sent, status, tmp_path):
    data = write_images(tmp_path / "images", val=300)
    log = tmp_path / "run" / "log.jsonl"
    process = vit24h_train(data, tmp_path / "run", "budget.steps=12", "runtime.eval_batch_size=1", arm="baseline")
    wait_for(lambda: log.exists() and any(row["event"] == "epoch" and row["epoch"] == 2 for row in read_rows(log)))
    process.send_signal(sent)
    out, err = process.communicate(timeout=30)
    assert process.returncode == status, err
    assert "stopped and saved" in out
    rows = read_rows(log)
    assert (rows[-1]["reason"], rows[-1]["saved"], rows[-1]["step"]) == ("interrupted", True, 6)
    assert not any(row["event"] == "eval" for row in rows)


def test_a_stop_is_not_taken_for_a_damaged_image_by_what_it_interrupts(data, undisturbed, tmp_path, monkeypatch):
    """Decoding turns every error into a corrupt image; here the stop comes in the middle of it."""
    original, count = simplejpeg.decode_jpeg, itertools.count()

    def decode_jpeg(*arguments, **options):
        if next(count) == 30:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", decode_jpeg)
    with pytest.raises(Interrupted):
        train(tiny_config(data, steps=STEPS), tmp_path)
    monkeypatch.undo()
    train(tiny_config(data, steps=STEPS), tmp_path)
    assert_same_result(tmp_path, undisturbed)
    assert incidents(tmp_path) == {}


def test_a_second_ctrl_c_leaves_at_once(data, tmp_path):
    """In a step that takes long: the first lets it end, the second does not."""
    log = tmp_path / "run" / "log.jsonl"
    slow = ["model.image_size=128", "model.embed_dim=128", "model.depth=12", "optimizer.batch_size=24"]
    process = vit24h_train(data, tmp_path / "run", *slow, "budget.steps=1000", "runtime.workers=1", arm="baseline")
    wait_for(lambda: log.exists() and any(row["event"] == "stage" for row in read_rows(log)), seconds=120)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None  # the step is not done
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - begin < 2
    assert process.returncode == 130
    assert "left at once; the next start goes on from the last checkpoint" in err


@pytest.mark.parametrize("after_s", [0.3, 1.5, 3])
def test_a_stop_during_set_up_leaves_at_once_and_harms_nothing(after_s, data, undisturbed, tmp_path):
    """Whatever the set-up is at: imports, scanning, the trial, starting the loader."""
    process = vit24h_train(data, tmp_path / "run", f"budget.steps={STEPS}", "runtime.workers=2")
    time.sleep(after_s)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode in (143, -signal.SIGTERM)
    train(tiny_config(data, steps=STEPS), tmp_path / "run")
    assert_same_result(tmp_path / "run", undisturbed)


def test_a_stop_while_images_are_drawn_leaves_at_once_and_the_next_start_draws_them(tmp_path):
    cache = tmp_path / "cache"
    code = textwrap.dedent("""
        from vit24h.cli import main
        raise SystemExit(main(["suite", "--quick", "--name", "stopped"]))
    """)
    environment = {**os.environ, "VIT24H_CACHE": str(cache), "VIT24H_RUNS": str(tmp_path / "runs")}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for((cache / "drawn-images.unfinished" / "train").is_dir)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 143, err
    assert "Traceback" not in err
    assert not (cache / "drawn-images").exists()
