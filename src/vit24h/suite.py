"""A suite: arms × seeds, one after another, each in a process of its own, then the report. Must not know torch.

Running it again goes on: finished runs are skipped, interrupted ones resumed. One run's failure does not stop the rest.
"""

from __future__ import annotations

import difflib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from vit24h import paths
from vit24h.config import Config, load_config
from vit24h.errors import UserError
from vit24h.gpu_loss import EXIT_STATUS as GPU_LOST
from vit24h.progress import duration
from vit24h.records.folder import hold_folder, remove_leftovers, write_json
from vit24h.records.same_config import require_same_config
from vit24h.report import read_suite, render_table, write_report

_PLAN = "suite.json"
SUITE_PROCESS = "VIT24H_SUITE_PROCESS"
"""What tells a command that a suite has started it, in the environment: the suite's process id."""

DEFAULT_ARMS = ["baseline", "locality", "curriculum", "combined"]


@dataclass(frozen=True)
class PlannedRun:
    """One arm with one seed: its resolved configuration, and the command line that trains it."""

    config: Config
    run_dir: Path
    command: list[str]

    @property
    def title(self) -> str:
        return f"{self.config.name} seed {self.config.seed}"

    @property
    def finished(self) -> bool:
        return (self.run_dir / "result.json").is_file()


class Suite:
    """Runs in the order they are trained: all arms of the first seed, then of the next."""

    def __init__(self, folder: Path, runs: Sequence[PlannedRun], checkup: Sequence[str] = ()) -> None:
        self.folder = folder
        self.runs = list(runs)
        self._checkup = list(checkup)  # the command line that looks whether the machine is ready for them
        self._child: subprocess.Popen[bytes] | None = None
        self._stop_signal: int | None = None
        self._gpu_lost = False

    @classmethod
    def plan(
        cls,
        *,
        profile: str,
        arms: Sequence[str],
        seeds: Sequence[int],
        data: Path | None,
        overrides: Sequence[str],
        name: str | None,
    ) -> Suite:
        """Resolve every run before the first one starts.

        Args:
            arms: names of `configs/paper/` or `configs/paper/ablations/`, or YAML files.
            data: the dataset's folder; None for the profile's own.
            name: the suite's folder below `runs/`; None for the profile's name, with the dataset's where the profile
                would draw its own images.

        Raises:
            UserError: a configuration is wrong, or there is nothing to run.
        """
        if not arms or not seeds:
            raise UserError("a suite needs at least one arm and one seed: --arms baseline,combined --seeds 0,1")
        configs = []
        for seed in seeds:
            for arm in arms:
                settings = [*data_overrides(data), *overrides, f"seed={seed}"]
                config_path = config_of(arm)
                configs.append((config_path, settings, load_config(config_path, profile=profile, overrides=settings)))
        default_name = Path(profile).stem
        if data is not None and load_config(config_of(arms[0]), profile=profile).data.synthetic:
            default_name += f"-{data.resolve().name}"
        folder = paths.runs() / (name or default_name)
        runs = []
        for config_path, settings, config in configs:
            run_dir = folder / config.name / f"seed{config.seed}"
            command = [sys.executable, "-m", "vit24h", "train", config_path, "--profile", profile]
            command += ["--run-dir", str(run_dir), *(word for setting in settings for word in ("--set", setting))]
            runs.append(PlannedRun(config, run_dir, command))
        checkup = [sys.executable, "-m", "vit24h", "doctor", "--brief", "--folder", str(folder), "--profile", profile]
        checkup += [word for setting in [*data_overrides(data), *overrides] for word in ("--set", setting)]
        return cls(folder, runs, [*checkup, *dict.fromkeys(config_path for config_path, _, _ in configs)])

    def run(self) -> int:
        """Train what is not finished, then report.

        Returns:
            The exit status: 0, 1 where a run failed, 2 where the machine is not ready, 75 where the GPU is lost, 128 +
            signal when stopped.

        Raises:
            UserError: a run's folder holds one of another configuration, finished or not: nothing is begun then.
        """
        with hold_folder(self.folder):
            for run in self.runs:
                require_same_config(run.config, run.run_dir)
            self._write_plan()
            todo = self._unfinished()
            for run in self.runs:
                if run.finished:
                    remove_leftovers(run.run_dir)
            finished = len(self.runs) - len(todo)
            print(f"{self.folder.name}: {_count(len(self.runs))} in {self.folder}, {finished} finished")
            if self.runs[0].config.smoke:
                print("A smoke run: it shows that everything works, on a small scale. It is not the paper's result.")
            with self._passing_stops_on():
                not_ready = self._child_status(self._checkup) if todo and self._checkup else 0
                failed = [] if not_ready else self._train_all()
            if self._stop_signal is not None:
                print(f"stopped; {_count(len(self._unfinished()))} to do: the same command goes on from here")
                return 128 + self._stop_signal
            if self._gpu_lost:
                print(f"stopped without a GPU; {_count(len(self._unfinished()))} to do: a new start goes on from here")
                return GPU_LOST
            if not_ready:
                return not_ready
            self._report()
        for run in failed:
            print(f"FAILED: {run.title}; see {run.run_dir / 'log.jsonl'}", file=sys.stderr)
        return 1 if failed else 0

    def _write_plan(self) -> None:
        """What this suite is to train, for `vit24h status`; what earlier starts planned stays."""
        planned = {run["folder"]: run for run in read_plan(self.folder) or []}
        for run in self.runs:
            folder = str(run.run_dir.relative_to(self.folder))
            config = run.config
            planned[folder] = {"arm": config.name, "seed": config.seed, "folder": folder, "hours": config.budget.hours}
        write_json(self.folder / _PLAN, {"runs": list(planned.values())})

    def _train_all(self) -> list[PlannedRun]:
        """Train one after another; the runs that failed."""
        failed = []
        for number, run in enumerate(self.runs, start=1):
            if self._stop_signal is not None:
                break
            begin = time.monotonic()
            head = f"[{number}/{len(self.runs)}] {run.title}"
            if run.finished:
                print(f"{head}: finished before, top-1 {_top1(run):.2f} %", flush=True)
                continue
            print(f"{head}: {'goes on' if (run.run_dir / 'log.jsonl').is_file() else 'begins'}", flush=True)
            status = self._child_status(run.command)
            if status == 0:
                took = duration(time.monotonic() - begin)
                print(f"{head}: finished in {took}, top-1 {_top1(run):.2f} %", flush=True)
            elif status == GPU_LOST:
                self._gpu_lost = True  # the next one would find no GPU either
                break
            elif self._stop_signal is None:
                failed.append(run)
                print(f"{head}: failed with exit status {status}; the next one begins", file=sys.stderr, flush=True)
        return failed

    def _child_status(self, command: Sequence[str]) -> int:
        # A process group of its own: Ctrl-C reaches it once, through us, and not also from the terminal.
        environment = {**os.environ, SUITE_PROCESS: str(os.getpid())}
        self._child = subprocess.Popen(command, process_group=0, env=environment)
        if self._stop_signal is not None:  # it came while the process was being started
            self._child.send_signal(self._stop_signal)
        status = self._child.wait()
        self._child = None
        return 128 - status if status < 0 else status

    @contextmanager
    def _passing_stops_on(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM go to the child, which saves itself; we end after it."""
        outer = {number: signal.signal(number, self._pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in outer.items():
                signal.signal(number, handler)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self._stop_signal = number
        if self._child is not None:
            self._child.send_signal(number)

    def _unfinished(self) -> list[PlannedRun]:
        return [run for run in self.runs if not run.finished]

    def _report(self) -> None:
        print("writing tables, figures and notebooks ...", flush=True)
        files = write_report(self.folder)
        print(f"\n{render_table(read_suite(self.folder).runs)}\n\nreport: {files.folder}", flush=True)


def read_plan(folder: Path) -> list[dict[str, Any]] | None:
    """The runs planned in a suite's folder: arm, seed, folder, hours; None where no suite was started."""
    try:
        return json.loads((folder / _PLAN).read_text(encoding="utf-8"))["runs"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / _PLAN}: damaged; remove it and start the suite again") from error


def data_overrides(data: Path | None) -> list[str]:
    """The settings that `--data` stands for."""
    return [] if data is None else [f"data.path={json.dumps(str(data.resolve()))}", "data.synthetic=false"]


def config_of(arm: str) -> str:
    """`combined` is short for `paper/combined`, `combined_64_5_32` for `paper/ablations/combined_64_5_32`."""
    for name in (arm, f"paper/{arm}", f"paper/ablations/{arm}"):
        if (paths.configs() / f"{name}.yaml").is_file():
            return name
    if Path(arm).suffix in {".yaml", ".yml"}:
        return arm
    names = [path.stem for path in sorted((paths.configs() / "paper").rglob("*.yaml"))]
    near = difflib.get_close_matches(arm, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}, or give a .yaml file"
    raise UserError(f"--arms: no arm {arm}; {hint}")


def _count(runs: int) -> str:
    return f"{runs} run{'s' if runs != 1 else ''}"


def _top1(run: PlannedRun) -> float:
    return json.loads((run.run_dir / "result.json").read_text(encoding="utf-8"))["top1"]
