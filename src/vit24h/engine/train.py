"""Training one arm: from a configuration to a finished run folder, through any number of stops.

`train` is the way in; `Training.run` is the loop. What a step does is in `step.py`, what time is in `budget.py`.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from safetensors.torch import save
from torch import Tensor

from vit24h import schedules
from vit24h.budget import PHASES, BudgetClock, Position
from vit24h.config import Config
from vit24h.data import Batch, BatchPlan, Dataset, DeviceCopy, EvalLoader, TrainLoader
from vit24h.engine import compiled, inputs
from vit24h.engine import device as devices
from vit24h.engine.checkpoint import load_newest_checkpoint, save_checkpoint
from vit24h.engine.ema import WeightAverage
from vit24h.engine.evaluate import evaluate
from vit24h.engine.interruption import Interrupted, StopRequested, StopSignals
from vit24h.engine.optim import build_optimizer
from vit24h.engine.recovery import Recovery, TrainingFailed
from vit24h.engine.step import TrainStep
from vit24h.engine.team import News, Team
from vit24h.engine.trial import raise_if_out_of_memory, try_largest_step
from vit24h.engine.watchdog import Watchdog
from vit24h.errors import UserError
from vit24h.files import replace_file
from vit24h.gpu_loss import GpuLost, noticing_gpu_loss
from vit24h.models import build_model, count_macs, select_depthwise
from vit24h.progress import TrainDisplay
from vit24h.records import FollowedRunFolder, RunFolder, capture_environment
from vit24h.records.chain import config_fingerprint, fingerprint
from vit24h.records.fields import Fields
from vit24h.records.folder import remove_leftovers, write_json, write_yaml, writing_to
from vit24h.records.reader import effective_rows, read_json, read_rows
from vit24h.records.same_config import require_same_config

Result = TypeVar("Result")

_HEARTBEAT_S = 1.0
_NON_FINITE_IN_A_ROW = 10
_IMAGES_PER_CORRUPT = 1000  # more corrupt images than one in this many end the run
_CORRUPT_BEFORE_A_RATE = 10  # so many say nothing yet about a large dataset of which little has been read


class _NonFiniteLoss(TrainingFailed):
    """Many steps in a row had no finite loss: what the last checkpoint is there for."""


def train(config: Config, run_dir: Path, *, display: TrainDisplay | None = None, wait_s: float = 0.5) -> dict[str, Any]:
    """Train `config` in `run_dir` until its budget is spent, or go on where a stopped run left off.

    Args:
        wait_s: how long to wait where another process still writes to `run_dir`.

    Returns:
        The content of `result.json`. A finished run's record is not touched.

    Raises:
        UserError: the configuration, the dataset or the folder cannot be used as they are.
        Interrupted: Ctrl-C or SIGTERM; the run is saved. (During set-up, where there is nothing to save, these do what
            they do outside.)
        GpuLost: the GPU cannot be used any more; the run is saved, or as it was at its last checkpoint.
        TrainingFailed: the loss stays non-finite, the dataset is damaged or stays away, the disk stays full.
    """
    display = display or TrainDisplay(f"{config.name} seed {config.seed}")
    require_same_config(config, run_dir)
    stop = StopSignals()
    with noticing_gpu_loss():
        accelerator = devices.make_accelerator(config, devices.select_device(config.runtime.device))
        if accelerator.is_main_process:
            held = RunFolder(run_dir, wait_s=wait_s, waiting=display.message)
        else:
            held, display = FollowedRunFolder(run_dir), TrainDisplay.silent()
    with noticing_gpu_loss(), held as folder, display:
        team = Team(accelerator)
        if team.share(folder.result.is_file()):
            if team.leads:
                remove_leftovers(run_dir)
            return read_json(folder.result)
        for last_try in (False, True):
            training = Training(config, accelerator, team, folder, stop, display)
            try:
                with stop:
                    result = training.run()
                team.part()
                return result
            except _NonFiniteLoss as error:
                if last_try:
                    training.record_end("failed", str(error))
                    raise
                training.incident("rollback", reason=str(error))
                training.beat()  # what is thrown away now is lost time
            except (TrainingFailed, UserError) as error:
                training.record_end("failed", str(error), saved=getattr(error, "saved", False))
                raise
            except (MemoryError, RuntimeError) as error:
                training.out_of_memory(error)
                raise
            finally:
                training.close()
        raise AssertionError("the last try returns or raises")


@dataclass
class _Epoch:
    """Sums over the epoch now running; part of a checkpoint."""

    loss_sum: float = 0.0
    losses: int = 0  # steps whose loss was finite
    images: int = 0
    data_wait_s: float = 0.0
    begin_train_s: float = 0.0
    complete: bool = True  # False: the run began or ended within it


@dataclass
class _Progress:
    """What else a checkpoint must hold for the run to go on as if it had not stopped."""

    image_size: int = 0  # of the stage now running; 0 before the first step
    evaluated_step: int = -1
    top1: float | None = None
    non_finite_in_a_row: int = 0
    corrupt_images: list[str] = field(default_factory=list)


class Training:
    """A run in progress: model, optimiser, data, clock, and the folder they are recorded in."""

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        team: Team,
        folder: RunFolder,
        stop: StopSignals,
        display: TrainDisplay,
    ) -> None:
        self.config, self.folder, self.stop, self.display = config, folder, stop, display
        self.accelerator, self.team, self.device = accelerator, team, accelerator.device
        devices.limit_threads(self.device)
        devices.allow_tf32(self.device, config.runtime.tf32)
        self.clock = BudgetClock(config.budget, synchronize=lambda: devices.synchronize(self.device))
        self.loader: TrainLoader | None = None
        self.eval_loader: EvalLoader | None = None
        self.epoch, self.state = _Epoch(), _Progress()
        self._pending: list[tuple[int, Tensor]] = []  # (step, loss on the device) not read back yet
        self._last_row: dict[str, Any] = {}
        self._images_per_s = math.nan  # of the last epoch

        dataset = inputs.open_configured_dataset(config.data)
        order = inputs.epoch_order(config, dataset)
        self.position = Position(order.samples_per_epoch)
        self._train_images = len(dataset.train)

        if config.optimizer.batch_size % team.size:
            raise UserError(
                f"optimizer.batch_size {config.optimizer.batch_size}: not a multiple of the {team.size} processes that "
                "share a batch: set it to one, or launch another number of processes"
            )
        torch.manual_seed(config.seed)
        model = build_model(config.model, num_classes=len(dataset.classes))
        self.facts = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "macs": count_macs(model, config.model.image_size),
            "num_classes": len(dataset.classes),
            "samples_per_epoch": order.samples_per_epoch,
            "precision": devices.select_precision(config, self.device),
        }
        select_depthwise(model, config.runtime.depthwise)
        model.to(self.device)
        try_largest_step(config, model, len(dataset.classes), self.accelerator)
        self.average = WeightAverage(model, config.optimizer.ema_decay)
        self.model, self.optimizer = self.accelerator.prepare(model, build_optimizer(model, config.optimizer))
        augment = inputs.device_augment(config, len(dataset.classes))
        self.normalize, self.to_device = augment.normalise, DeviceCopy(self.device)
        self.step = TrainStep(
            self.accelerator,
            self.model,
            self.optimizer,
            augment,
            self.average,
            label_smoothing=config.augmentation.label_smoothing,
            compiled=compiled.configured(config.runtime, self.accelerator, shapes=len(config.image_sizes)),
        )
        self._compile_clock = compiled.CompileClock()

        if not team.leads:
            torch.manual_seed(config.seed + team.rank)  # stochastic depth: others than the leader's
        self._begin_or_resume(dataset)
        self._last_beat = self._last_checkpoint = time.monotonic()
        self._corrupt: list[dict[str, Any]] = []  # found since the last step
        self.news = self._agree()
        self._timed_from = (self.position.step + 1, math.nan)  # the first step may compile
        self._dataset, self._order = dataset, order
        self._start_loader()
        self._start_eval_loader()
        self.recovery = Recovery(
            folder,
            dataset,
            wait_minutes=config.runtime.fault_wait_minutes,
            incident=self.incident,
            meanwhile=self._wait_a_moment,
            save=self.checkpoint,
        )
        self.watchdog = Watchdog(
            config.runtime.stall_minutes, stalled=partial(self.incident, "stalled"), workers=self._workers
        )
        self._saved_step = self.position.step

    # -- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train until the budget is spent; the content of `result.json`."""
        position, config = self.position, self.config
        self.model.train()
        with self.watchdog, self.clock.phase("train"):
            while True:
                if self._evaluation_due():
                    self.evaluate()
                self._catch_up()
                if self.budget_spent():
                    break

                waiting_since = time.monotonic()
                batch = self._next_batch()
                self.epoch.data_wait_s += time.monotonic() - waiting_since
                if batch.image_size != self.state.image_size:
                    self._begin_stage(batch.image_size)

                batch_size = len(batch.labels) * self.team.size
                learning_rate = self.learning_rate(batch_size)
                loss = self.step(self.to_device(batch), learning_rate)

                position.advance(batch_size, last_of_epoch=batch.last_of_epoch)
                self.watchdog.moved()
                self.epoch.images += batch_size
                self._last_row = {"batch_size": batch_size, "learning_rate": learning_rate}
                self._pending.append((position.step, loss))
                if compile_s := self._compile_clock.take():
                    self.record("compile", compile_s=round(compile_s, 3))
                self._corrupt += batch.incidents
                if position.epoch_ended or len(self._pending) >= config.runtime.log_every_steps:
                    self._read_losses()
                if position.epoch_ended:
                    self._end_epoch()
                if time.monotonic() - self._last_beat > _HEARTBEAT_S:
                    self.beat()
                    self._leave_a_lost_gpu()

            self._read_losses()
            if self.epoch.images:
                self.epoch.complete = False
                self._end_epoch()
            if self._saved_step != position.step:
                self.checkpoint()  # from here on nothing of training can be lost
            if self.state.evaluated_step != position.step:
                self.evaluate()
            self._catch_up()
        return self.team.share(self._finish() if self.team.leads else {})

    def progress(self, *, steps_ahead: int = 0, epochs: float | None = None) -> float:
        """The fraction of the budget spent when `steps_ahead` more steps are done; exact unless the budget is hours.

        Args:
            epochs: how many are done then; None: as many as now.
        """
        budget = self.config.budget
        if budget.hours is None:
            return self.clock.progress(
                epochs=self.position.epochs if epochs is None else epochs, steps=self.position.step + steps_ahead
            )
        begin_step, begin_s = self._timed_from
        now_s, steps = self.news.counted_s, self.position.step - begin_step
        seconds_per_step = (now_s - begin_s) / steps if steps > 0 else 0.0
        return (now_s + steps_ahead * seconds_per_step) / (budget.hours * 3600)

    def budget_spent(self) -> bool:
        return self.clock.expired(epochs=self.position.epochs, steps=self.position.step, counted_s=self.news.counted_s)

    def plan(self, epoch: int, sample: int) -> BatchPlan:
        """Image and batch size of the next batch that the loader is asked for, some steps before it is trained on.

        So the first batches of a stage are ready when it begins, and nothing decoded is thrown away.
        """
        model, curriculum = self.config.model, self.config.curriculum
        steps_ahead = self._planned_step - self.position.step
        self._planned_step += 1
        size = model.image_size
        if curriculum.initial_size is not None:
            by_epochs = curriculum.epochs_per_stage is not None
            epochs = epoch + sample / self.position.samples_per_epoch
            size = schedules.image_size(
                epochs if by_epochs else self.progress(steps_ahead=steps_ahead, epochs=epochs),
                initial_size=curriculum.initial_size,
                size_step=curriculum.size_step,
                stage_length=curriculum.epochs_per_stage if by_epochs else curriculum.budget_fraction_per_stage,
                final_size=model.image_size,
            )
        return BatchPlan(image_size=size, batch_size=inputs.batch_size(self.config, size, self.team.size))

    def learning_rate(self, batch_size: int | None = None) -> float:
        """Of the step to come: set once an epoch over `schedule_epochs` (paper), or at every step over the budget.

        Args:
            batch_size: of that step; None for optimizer.batch_size.
        """
        optimizer, position = self.config.optimizer, self.position
        scaling = optimizer.learning_rate_scaling
        factor = schedules.batch_factor(batch_size or optimizer.batch_size, optimizer.batch_size, scaling)
        return factor * schedules.learning_rate(
            position.epoch / optimizer.schedule_epochs if optimizer.schedule_epochs is not None else self.progress(),
            peak=optimizer.learning_rate,
            minimum=optimizer.min_learning_rate,
            warmup=position.epochs / optimizer.warmup_epochs if optimizer.warmup_epochs else 1.0,
        )

    def evaluate(self) -> None:
        """Raw and averaged weights on all validation images; nothing is recorded where a stop comes in between."""
        with self.clock.phase("eval"):
            self.display.note("evaluating")
            models = {"raw": self.accelerator.unwrap_model(self.model), "ema": self.average.model}
            results = self._unless_stopped(
                lambda: evaluate(
                    models, self.eval_loader, self.normalize, self.accelerator, stopped=self._stopped_or_beat
                ),
                self._start_eval_loader,
            )
        if results is None:
            return
        self.state.evaluated_step = self.position.step
        self.state.top1 = results["raw"]["top1"]
        averaged = {key: value for key, value in results["ema"].items() if key != "images"}
        self.record("eval", **results["raw"], ema=averaged)
        self._show(force=True)

    # -- what is kept -----------------------------------------------------------------------------------------------

    def record(self, event: str, **content: Any) -> None:
        """A row of `log.jsonl`: where the run is, the clock, and `content`."""
        row = {
            "event": event,
            "epoch": self.position.epoch,
            "step": self.position.step,
            "samples_seen": self.position.samples_seen,
            "image_size": self.state.image_size or self.config.model.image_size,
            "batch_size": self.config.optimizer.batch_size,
            "learning_rate": self.config.optimizer.learning_rate,
            **self._last_row,
            "clock": _rounded(self.clock.seconds()),
        }
        was_written = self.folder.problem is None
        self.folder.append({**row, **content})
        if was_written and self.folder.problem is not None:
            self.incident("log_waits", reason=f"{self.folder.problem}; rows are kept and written when they can be")

    def incident(self, kind: str, **details: Any) -> None:
        self.record("incident", kind=kind, **details)
        told = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in details.items())
        self.display.message(f"{kind.replace('_', ' ')}: {told}")

    def record_end(self, reason: str, message: str | None = None, *, saved: bool = False) -> None:
        self.record("end", reason=reason, message=message, saved=saved)

    def checkpoint(self) -> bool:
        """Save everything. False where the disk did not take it: then the one before is intact and the run goes on."""
        self._read_losses()
        begin = self._last_checkpoint = time.monotonic()
        if not self.team.leads:
            self._saved_step = self.position.step
            return True
        with self.clock.phase("checkpoint"):
            try:
                if not self.folder.flush():
                    raise OSError(f"writing log.jsonl failed: {self.folder.problem}")  # which it must not be ahead of
                path = save_checkpoint(self.folder.checkpoints, self.position.step, self._state_dict())
            except OSError as error:
                self.incident("checkpoint_not_saved", reason=str(error))
                path = None
        self._last_checkpoint = time.monotonic()
        self.watchdog.moved()
        if path is not None:
            self._saved_step = self.position.step
            self.record("checkpoint", file=path.name, seconds=round(self._last_checkpoint - begin, 3))
        self.beat()
        return path is not None

    def beat(self) -> None:
        """Note the clock beside the log, so that a kill can be told how much it lost; and show where the run is."""
        self._last_beat = time.monotonic()
        if not self.team.leads:
            return
        beat = {"step": self.position.step, **self._status(), "clock": _rounded(self.clock.seconds())}
        with suppress(OSError):  # a full disk is told by what has to be written; this makes lost time exact
            write_json(self.folder.heartbeat, beat, sync=False)
        self._show()

    def out_of_memory(self, error: Exception) -> None:
        """Raise and record `error` in words, where it is that; the trial at the start cannot see what came later."""
        try:
            raise_if_out_of_memory(error, self.config, self.state.image_size, self.device)
        except UserError as told:
            self.record_end("failed", str(told))
            raise

    def close(self) -> None:
        self._compile_clock.close()
        for loader in (self.loader, self.eval_loader):
            if loader is not None:
                loader.close()

    # -- private ----------------------------------------------------------------------------------------------------

    def _start_loader(self) -> None:
        """From the next batch on: at first, and where the loader broke."""
        if self.loader is not None:
            self.loader.close()
        self._planned_step = self.position.step
        self.loader = inputs.train_loader(
            self.config,
            self._dataset,
            self._order,
            self.plan,
            device=self.device,
            start_epoch=self.position.epoch,
            start_position=self.position.sample,
            rank=self.team.rank,
            world_size=self.team.size,
        )

    def _start_eval_loader(self) -> None:
        if self.eval_loader is not None:
            self.eval_loader.close()
        self.eval_loader = inputs.eval_loader(
            self.config, self._dataset, device=self.device, rank=self.team.rank, world_size=self.team.size
        )

    def _catch_up(self) -> None:
        """Between two steps: hear what has come up, in whichever process, and do what follows from it."""
        self.news = self._agree()
        if self.position.step == self._timed_from[0]:
            self._timed_from = (self.position.step, self.news.counted_s)
        self._note_corrupt_images(self.news.incidents)
        if self.news.stop_signal is not None:
            self._save_and_leave()
        if self.news.checkpoint_due:
            self.checkpoint()

    def _agree(self) -> News:
        mine = News(
            counted_s=self.clock.counted_s,
            checkpoint_due=time.monotonic() - self._last_checkpoint > 60 * self.config.runtime.checkpoint_minutes,
            stop_signal=self.stop.received,
            incidents=tuple(self._corrupt),
        )
        self._corrupt.clear()
        return self.team.agree(mine)

    def _next_batch(self) -> Batch:
        batch = self._unless_stopped(lambda: next(self.loader), self._start_loader)
        if batch is None:
            self._save_and_leave()
        return batch

    def _unless_stopped(self, load: Callable[[], Result], rebuild: Callable[[], None]) -> Result | None:
        """What `load` gives, through all that may pass; None where a stop comes, which waits for nothing.

        With other processes a stop waits for them: they would wait for this one's share of the step.
        """
        try:
            with self.stop.ending_a_wait() if self.team.alone else nullcontext():
                return self.recovery.loading(load, rebuild)
        except StopRequested:
            return None

    def _wait_a_moment(self) -> None:
        """Between two looks whether what is waited for is there."""
        self.watchdog.moved()
        self.beat()
        if self.stop.requested():
            self._save_and_leave()

    def _workers(self) -> list[tuple[int, Path | None]]:
        return [*self.loader.workers(), *self.eval_loader.workers()]

    def _state_dict(self) -> dict[str, Any]:
        scaler, on_gpu = self.accelerator.scaler, self.device.type == "cuda"
        return {
            "model": self.accelerator.unwrap_model(self.model).state_dict(),
            "average": self.average.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "random": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if on_gpu else None},
            "position": self.position.state_dict(),
            "clock": self.clock.seconds(),
            "epoch": asdict(self.epoch),
            "progress": asdict(self.state),
            "last_row": self._last_row,
            "log_rows": self.folder.rows,
        }

    def _load_state_dict(self, state: dict[str, Any]) -> None:
        self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"]["cpu"].cpu())
        if state["random"]["cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random"]["cuda"].cpu())
        self.position = Position(**state["position"])
        self.epoch = _Epoch(**state["epoch"])
        self.state = _Progress(**state["progress"])
        self._last_row = state["last_row"]

    def _begin_or_resume(self, dataset: Dataset) -> None:
        folder, config = self.folder, self.config
        environment = capture_environment(
            gpu=devices.gpu_facts(self.device),
            dataset=inputs.dataset_facts(config.data, dataset),
            seed=config.seed,
            processes=self.accelerator.num_processes,
        )
        begins = self.team.share(not folder.rows)
        if begins and not self.team.leads:
            return
        if begins:
            with writing_to(folder.path):
                write_yaml(folder.config, config.to_dict())
                write_json(folder.environment, environment)
            fingerprints = {"config": config_fingerprint(config.to_dict()), "environment": fingerprint(environment)}
            self.record("start", **self.facts, fingerprints=fingerprints)
            return

        began_with = Fields(read_json(folder.environment) or {}, str(folder.environment))
        if began_with.section("dataset").text("fingerprint") != dataset.fingerprint:
            raise UserError(
                f"{config.data.path}: not the images that {folder.path} began with (other names, sizes or classes): "
                "give --data the same dataset, or train in another folder"
            )
        damaged: list[tuple[Path, str]] = []
        # To the CPU: it is copied into what is on the device, which need not have room for it twice.
        state = load_newest_checkpoint(
            folder.checkpoints, torch.device("cpu"), damaged=lambda *found: damaged.append(found)
        )
        if state is not None:
            self._load_state_dict(state)
        if not self.team.leads:
            torch.manual_seed(config.seed + self.team.rank + self.team.size * self.position.step)
            return
        clock = state["clock"] if state is not None else dict.fromkeys(self.clock.seconds(), 0.0)
        last = read_rows(folder.log)[-1]
        last_clock = _clock_of(last, folder.log)
        if last["event"] == "end" and last.get("saved"):  # stopped in order: only the time to save came after it
            self.clock.load_state_dict(last_clock, lost_s=0.0)
        else:
            known_wall_s = max(_last_beat_wall_s(folder), last_clock["wall_s"])
            self.clock.load_state_dict(clock, lost_s=max(0.0, known_wall_s - clock["wall_s"]))
        changed = {key: value for key, value in environment.items() if began_with.get(key) != value}
        self.record("resume", rows=state["log_rows"] if state else 0, environment_changes=changed, **self.facts)
        for path, reason in damaged:
            self.incident("damaged_checkpoint", file=path.name, reason=reason)

    def _evaluation_due(self) -> bool:
        every, position = self.config.evaluation.every_epochs, self.position
        return (
            position.epoch_ended
            and every > 0
            and position.epoch % every == 0
            and self.state.evaluated_step != position.step
        )

    def _begin_stage(self, image_size: int) -> None:
        """Save at the border, so that a stop in a stage never goes back into the one before."""
        if self.state.image_size and not self.checkpoint():
            self.display.message("the stage begins without a new checkpoint")
        self.state.image_size = image_size
        self._timed_from = (self.position.step + 1, math.nan)  # the first step may compile
        self.record("stage")

    def _end_epoch(self) -> None:
        epoch, train_s = self.epoch, self.clock.seconds()["train_s"]
        epoch_s = train_s - epoch.begin_train_s
        self.record(
            "epoch",
            train_loss=epoch.loss_sum / epoch.losses if epoch.losses else math.nan,
            images_per_s=self._epoch_images_per_s(),
            data_wait_s=epoch.data_wait_s,
            epoch_s=epoch_s,
            images=epoch.images,
            complete=epoch.complete,
        )
        self._images_per_s = self._epoch_images_per_s()
        self.epoch = _Epoch(begin_train_s=train_s)

    def _epoch_images_per_s(self) -> float:
        epoch_s = self.clock.seconds()["train_s"] - self.epoch.begin_train_s
        return self.epoch.images / epoch_s if epoch_s > 0 else math.nan

    def _read_losses(self) -> None:
        """Bring the losses of the last steps back from the device: the only wait for it in the loop."""
        if not self._pending:
            return
        losses = torch.stack([loss for _, loss in self._pending]).tolist()
        steps = [step for step, _ in self._pending]
        self._pending.clear()
        scaled = self.accelerator.scaler is not None
        for step, loss in zip(steps, losses, strict=True):
            if math.isfinite(loss):
                self.epoch.loss_sum += loss
                self.epoch.losses += 1
                self.state.non_finite_in_a_row = 0
                continue
            self.state.non_finite_in_a_row += 1
            self.incident("non_finite_loss", at_step=step, loss=loss)
            if self.state.non_finite_in_a_row >= _NON_FINITE_IN_A_ROW:
                raise _NonFiniteLoss(
                    f"the loss was not finite for {_NON_FINITE_IN_A_ROW} steps in a row, up to step {step}: lower "
                    "optimizer.learning_rate" + (" or set optimizer.precision=bf16" if scaled else "")
                )

    def _note_corrupt_images(self, incidents: Iterable[dict[str, Any]]) -> None:
        seen = self.state.corrupt_images
        for found in incidents:
            if found["path"] in seen:
                continue
            seen.append(found["path"])
            self.incident(**found)
        read = min(self.position.samples_seen / self.config.data.repeated_augmentation, self._train_images)
        allowed = min(
            max(read / _IMAGES_PER_CORRUPT, _CORRUPT_BEFORE_A_RATE), max(self._train_images / _IMAGES_PER_CORRUPT, 1)
        )
        if incidents and len(seen) > allowed:
            raise TrainingFailed(
                f"{len(seen)} corrupt images among the first {read:.0f}, more than 1 in {_IMAGES_PER_CORRUPT}: restore "
                f"them and start again: {', '.join(seen[:20])}{' ...' if seen[20:] else ''}"
            )

    def _stopped_or_beat(self) -> bool:
        self.watchdog.moved()
        if time.monotonic() - self._last_beat > _HEARTBEAT_S:
            self.beat()
        return self.stop.requested() and self.team.alone

    def _leave_a_lost_gpu(self) -> None:
        """This process still has its GPU, but the arm after it would find none: a new start gives it back."""
        if seen := devices.lost_gpu(self.device):
            self.incident("gpu_lost", reason=seen)
            self._save_and_leave(GpuLost(seen))

    def _save_and_leave(self, reason: Exception | None = None) -> None:
        """Raises `reason`, or where it is None that the run was asked to stop."""
        saved = self.checkpoint() or self._saved_step == self.position.step
        self.record_end("interrupted", saved=saved)
        if saved:
            self.folder.heartbeat.unlink(missing_ok=True)
        raise reason or Interrupted(self.news.stop_signal or self.stop.received, saved=saved)

    def _finish(self) -> dict[str, Any]:
        config, position = self.config, self.position
        with self.clock.phase("checkpoint"):
            weights = self.accelerator.unwrap_model(self.model).state_dict()
            weights_file = save({name: t.contiguous().cpu() for name, t in weights.items()})
            self.recovery.writing(lambda: replace_file(self.folder.weights, weights_file))
        rows = read_rows(self.folder.log)
        final = next(row for row in reversed(rows) if row["event"] == "eval")
        clock = _rounded(self.clock.seconds())
        result = {
            "name": config.name,
            "profile": config.profile,
            "smoke": config.smoke,
            "seed": config.seed,
            **{key: final[key] for key in ("top1", "top5", "val_loss", "images", "ema")},
            "epochs": position.epochs,
            "steps": position.step,
            "samples_seen": position.samples_seen,
            "image_size": self.state.image_size,  # of the last stage trained
            "train_hours": clock["train_s"] / 3600,
            "clock": clock,
            **self.facts,
            "budget": asdict(config.budget),
            "incidents": sum(row["event"] == "incident" for row in effective_rows(rows)),
            "completed": True,
        }
        self.record_end("budget", saved=self._saved_step == position.step)
        result["fingerprints"] = {
            **rows[0].get("fingerprints", {}),
            "log": self.folder.link,
            "weights": hashlib.sha256(weights_file).hexdigest(),
        }
        self.recovery.writing(lambda: write_json(self.folder.result, result))
        remove_leftovers(self.folder.path)  # checkpoints too: the weights are in model.safetensors
        return result

    def _status(self) -> dict[str, Any]:
        """Where the run is, for whoever watches it."""
        progress, budget = self.progress(), self.config.budget
        train_s = self.clock.seconds()["train_s"]
        if budget.hours is not None:
            left_s = budget.hours * 3600 - self.clock.counted_s
        else:
            left_s = train_s * (1 - progress) / progress if progress else None
        epoch_s = train_s - self.epoch.begin_train_s
        images_per_s = self._epoch_images_per_s() if self.epoch.images else self._images_per_s
        return {
            "progress": min(progress, 1.0),
            "image_size": self.state.image_size,
            "epochs": self.position.epochs,
            "top1": self.state.top1,
            "images_per_s": images_per_s if math.isfinite(images_per_s) else None,
            "waiting_share": self.epoch.data_wait_s / epoch_s if epoch_s > 0 else 0.0,
            "left_s": None if left_s is None else max(0.0, left_s),
        }

    def _show(self, *, force: bool = False) -> None:
        self.display.update(self._status(), force=force)


def _last_beat_wall_s(folder: RunFolder) -> float:
    """How far the stopped process had got at its last beat, in seconds of its clock."""
    try:
        return _clock_of(read_json(folder.heartbeat) or {}, folder.heartbeat)["wall_s"]
    except UserError:
        return 0.0  # it ended before the first beat, or while the file system was losing it


def _clock_of(row: dict[str, Any], file: Path) -> dict[str, float]:
    """The clock of a row. Raises UserError where it has none."""
    clock = Fields(row, str(file)).section("clock")
    return {f"{name}_s": clock.number(f"{name}_s") for name in (*PHASES, "lost", "wall")}


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}
