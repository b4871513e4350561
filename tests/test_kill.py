"""Four days that cannot be lost: a suite that is killed again and again ends as if nothing had happened.

The real command in real processes, killed with SIGKILL: at times the whole suite, at times only the suite's process,
at times only the arm's; at random moments, and at moments that are waited for.
"""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiny import CURRICULUM, tiny_config, tiny_settings, write_images
from vit24h.engine.train import train
from vit24h.records import load_run
from vit24h.records.chain import first_break
from vit24h.records.reader import read_rows
from vit24h.records.verify import verify

# What `vit24h verify` holds against any tiny run; whatever a kill could break is not among it.
OUTSIDE_THE_BENCHMARK = {"full run", "dataset", "one GPU", "budget", "evaluation"}

SEEDS = (0, 1)  # two runs, one after the other
STEPS = 240  # of a run
KILLS = 20
SETTINGS = [
    f"budget.steps={STEPS}",
    "evaluation.every_epochs=4",  # every twelve steps
    "runtime.eval_batch_size=2",  # an evaluation that lasts
    "runtime.checkpoint_minutes=0.003",  # every 0.2 seconds
    "runtime.workers=1",
]


class Suite:
    """The `vit24h suite` command on the combined arm with two seeds, and what it leaves on disk and running."""

    def __init__(self, folder: Path, data: Path):
        self.folder = folder / "runs" / "killed"
        settings = [*tiny_settings(data), *CURRICULUM, *SETTINGS]
        seeds = ",".join(str(seed) for seed in SEEDS)
        self.command = [sys.executable, "-m", "vit24h", "suite", "--quick", "--name", "killed"]
        self.command += ["--arms", "combined", "--seeds", seeds]
        self.command += [word for setting in settings for word in ("--set", setting)]
        self.output = folder / "output.txt"
        self.environment = {**os.environ, "VIT24H_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1"}
        self.process = None

    def start(self) -> None:
        with self.output.open("a") as output:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdout=output, stderr=subprocess.STDOUT, process_group=0
            )

    def run_dir(self, seed: int) -> Path:
        return self.folder / "combined" / f"seed{seed}"

    def steps(self) -> int:
        """Steps of both runs that the logs tell of."""
        return sum(max((row["step"] for row in self.rows(seed)), default=0) for seed in SEEDS)

    def rows(self, seed: int) -> list[dict]:
        return read_rows(self.run_dir(seed) / "log.jsonl")

    def processes(self) -> dict[int, str]:
        """Command line of every process that was started by this suite, itself and loader workers included."""
        found = {}
        for proc in Path("/proc").glob("[0-9]*"):
            try:
                if f"VIT24H_RUNS={self.folder.parent}".encode() in (proc / "environ").read_bytes().split(b"\0"):
                    found[int(proc.name)] = (proc / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return {process: words for process, words in found.items() if words}  # none: it has ended

    def arm_processes(self) -> list[int]:
        """The training process and its workers."""
        return [process for process, words in self.processes().items() if " train " in words]

    def kill(self, who: str) -> None:
        victims = self.arm_processes()[:1] if who == "arm" else [self.process.pid]
        victims += self.arm_processes() if who == "all" else []
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        if who == "arm":  # the suite begins the next arm; that one is stopped where it happens to be
            time.sleep(random.uniform(0, 2))
            self.process.kill()
        self.process.wait()


def until(suite: Suite, condition, seconds: float = 240) -> bool:
    """Whether `condition` came true before the suite's end."""
    end = time.monotonic() + seconds
    while suite.process.poll() is None:
        if condition():
            return True
        assert time.monotonic() < end, f"did not happen in time; the suite said: {said(suite)}"
        time.sleep(0.001)
    return False


def said(suite: Suite) -> str:
    return suite.output.read_text()[-2000:]


# Where a suite is killed: each waits for its moment, and answers False where the suite had ended before.


def in_the_start_up(suite: Suite, _target: int) -> bool:
    time.sleep(random.uniform(0, 5))
    return suite.process.poll() is None


def in_a_step(suite: Suite, target: int) -> bool:
    reached = until(suite, lambda: suite.steps() >= target)
    time.sleep(random.uniform(0, 0.2))
    return reached and suite.process.poll() is None


def in_a_checkpoint(suite: Suite, target: int) -> bool:
    folders = [suite.run_dir(seed) / "checkpoints" for seed in SEEDS]
    return until(suite, lambda: suite.steps() >= target) and until(
        suite, lambda: any(list(folder.glob("*.writing")) for folder in folders)
    )


def in_an_evaluation(suite: Suite, target: int) -> bool:
    def evaluating() -> bool:
        rows = suite.rows(1) or suite.rows(0)
        return rows[-1]["event"] == "epoch" and rows[-1]["epoch"] % 4 == 0

    return until(suite, lambda: suite.steps() >= target) and until(suite, evaluating)


def between_arms(suite: Suite, _target: int) -> bool:
    return until(suite, (suite.run_dir(0) / "result.json").is_file)


def plan_of_kills(rng: random.Random) -> list[tuple]:
    """(where, who, not before how many steps), in the order of steps."""
    plan = []
    for kill in range(KILLS):
        where = [in_a_step, in_a_checkpoint, in_a_step, in_an_evaluation, in_the_start_up, in_a_checkpoint][kill % 6]
        plan.append((where, ["all", "suite", "all", "arm"][kill % 4], round(2 * STEPS * kill / (KILLS + 1))))
    middle = next(index for index, (_, _, target) in enumerate(plan) if target >= STEPS * 0.95)
    plan.insert(middle, (between_arms, rng.choice(["all", "suite"]), 0))
    return plan


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_suite_killed_again_and_again_ends_as_if_nothing_had_happened(tmp_path):
    torch.set_num_threads(1)
    chance = int(os.environ.get("VIT24H_KILL_SEED", time.time_ns() % 10**6))
    print(f"VIT24H_KILL_SEED={chance}")
    random.seed(chance)
    data = write_images(tmp_path / "images", val=12)
    suite = Suite(tmp_path, data)
    kills = Counter()
    for where, who, target in plan_of_kills(random.Random(chance)):
        suite.start()
        if not where(suite, target):
            assert suite.process.returncode == 0, said(suite)
            break
        suite.kill(who)
        kills[where.__name__, who] += 1
        for seed in SEEDS:
            suite.rows(seed)  # whatever was killed, what is there can be read
    print(dict(kills))
    assert kills.total() >= 20, kills

    suite.start()
    assert suite.process.wait() == 0, said(suite)
    for seed in SEEDS:
        undisturbed = tmp_path / "undisturbed" / str(seed)
        settings = [setting for setting in SETTINGS if "workers" not in setting and "checkpoint" not in setting]
        train(tiny_config(data, *settings, f"seed={seed}"), undisturbed)
        _assert_same_result(suite.run_dir(seed), undisturbed)
    _assert_nothing_left_behind(suite)


def _assert_same_result(killed_dir: Path, undisturbed_dir: Path) -> None:
    one, other = (load_file(folder / "model.safetensors") for folder in (undisturbed_dir, killed_dir))
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name

    undisturbed, killed = load_run(undisturbed_dir), load_run(killed_dir)
    for event in ("stage", "epoch", "eval"):
        assert [_facts(row) for row in killed.rows_of(event)] == [_facts(row) for row in undisturbed.rows_of(event)]
    assert killed.rows_of("end")[-1]["reason"] == "budget"
    lines = (killed_dir / "log.jsonl").read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert first_break(lines) is None
    assert {finding.rule for finding in verify(killed_dir).broken} <= OUTSIDE_THE_BENCHMARK

    # The clock goes on, and what was lost is on it.
    clocks = [row["clock"]["wall_s"] for row in killed.rows]
    assert clocks == sorted(clocks)
    resumes = killed.rows_of("resume")
    assert len(resumes) > 3
    rows = read_rows(killed_dir / "log.jsonl")
    lost_s = 0.0
    for before, row in itertools.pairwise(rows):
        if row["event"] == "resume":
            went_back = before["step"] - row["step"]
            assert went_back >= 0
            if went_back > 0:
                assert row["clock"]["lost_s"] > lost_s, (before, row)
            lost_s = row["clock"]["lost_s"]
    assert killed.result["clock"]["lost_s"] == pytest.approx(lost_s)
    assert lost_s > 0
    phases = ("train_s", "eval_s", "checkpoint_s", "setup_s", "lost_s")
    assert sum(killed.result["clock"][phase] for phase in phases) == pytest.approx(
        killed.result["clock"]["wall_s"], abs=0.01
    )


def _facts(row: dict) -> dict:
    """What a row says about training; not about time."""
    return {key: row[key] for key in row.keys() - {"time", "clock", "images_per_s", "data_wait_s", "epoch_s", "link"}}


def _assert_nothing_left_behind(suite: Suite) -> None:
    assert not suite.processes()
    for seed in SEEDS:
        files = {str(path.relative_to(suite.run_dir(seed))) for path in suite.run_dir(seed).rglob("*")}
        assert files == {
            ".lock",
            "checkpoints",
            "config.yaml",
            "environment.json",
            "log.jsonl",
            "model.safetensors",
            "result.json",
        }
