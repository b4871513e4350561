"""The rules of the benchmark, each a function of a record. BENCHMARK.md says them in plain words.

A rule returns what it found when it holds, raises `BreachError` (or `UnfitError`: a value that cannot be) where it is
broken, and `UncheckableError` where the record has not what it takes. Everything is judged from the record alone, and
every value in it may be anything.

Must not know: the engine, torch, how findings are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from vit24h.records import chain
from vit24h.records.environment import code_fingerprint
from vit24h.records.fields import Fields, Row, same, shown
from vit24h.records.reader import effective_rows

IMAGENET_IMAGES = (1_281_167, 50_000)  # training, validation
IMAGENET_CLASSES = 1000
BUDGET_HOURS = 24
OVERRUN_S = 60  # a step under way when the time is up is finished
IMAGE_SIZE = 224  # of the evaluation: short side 256, centre crop 224
RESIZE_RATIO = 256 / 224

_PHASES = ("setup_s", "train_s", "eval_s", "checkpoint_s")
_ROUNDING_S = 0.005  # clocks are written in milliseconds, their sum of six too


class BreachError(Exception):
    """A rule is broken; the message says how."""


class UncheckableError(Exception):
    """The record has not what it takes to tell; the message says what is missing."""


@dataclass(frozen=True)
class Record:
    """The files of a run folder as they were read: `problems` names those that are missing or damaged."""

    path: Path
    problems: Mapping[str, str]
    contents: Mapping[str, Fields]
    lines: tuple[bytes, ...]  # of log.jsonl, without their ends
    half_row: bool  # log.jsonl goes on after its last whole line
    all_rows: tuple[Row, ...]

    @property
    def config(self) -> Fields:
        return self._content("config.yaml")

    @property
    def environment(self) -> Fields:
        return self._content("environment.json")

    @property
    def result(self) -> Fields:
        return self._content("result.json")

    @property
    def rows(self) -> tuple[Row, ...]:
        """Every row of the log, at least one."""
        if not self.all_rows:
            raise UncheckableError("log.jsonl " + self.problems.get("log.jsonl", "is empty"))
        return self.all_rows

    @property
    def effective(self) -> list[Row]:
        """The rows that the final state stands on: none that a resume went back behind."""
        row_of = {id(row.values): row for row in self.rows}
        return [row_of[id(values)] for values in effective_rows([row.values for row in self.rows])]

    @property
    def in_order(self) -> list[Row]:
        """The rows of the training loop; incidents may come from threads beside it, a moment late."""
        return [row for row in self.rows if row.event != "incident"]

    @property
    def resumes(self) -> list[Row]:
        return [row for row in self.rows if row.event == "resume"]

    @property
    def finished(self) -> bool:
        return "result.json" in self.contents

    def effective_rows_of(self, event: str) -> list[Row]:
        return [row for row in self.effective if row.event == event]

    def changes(self, key: str) -> list[tuple[Row, Any]]:
        """What resumes found where `environment.json` says something else under `key`."""
        found = []
        for row in self.resumes:
            changed = row.section("environment_changes")
            if key in changed:
                found.append((row, changed.get(key)))
        return found

    def _content(self, name: str) -> Fields:
        if name not in self.contents:
            raise UncheckableError(f"{name} {self.problems.get(name, 'is missing')}")
        return self.contents[name]


# -- the record is whole -------------------------------------------------------------------------------------------


def files(record: Record) -> str:
    """config.yaml, environment.json and log.jsonl are there and readable; result.json, where it is there, too."""
    problems = [f"{name} {problem}" for name, problem in record.problems.items()]
    if problems:
        raise BreachError("; ".join(problems))
    return ", ".join([*record.contents, "log.jsonl"]) + ": there and readable"


def hash_chain(record: Record) -> str:
    """Every row of the log is linked to the one before it."""
    if "log.jsonl" in record.problems and not record.lines:
        raise UncheckableError(f"log.jsonl {record.problems['log.jsonl']}")
    if record.half_row:
        raise BreachError("log.jsonl ends in half a row")
    if broken := chain.first_break(record.lines):
        raise BreachError(broken)
    return f"{len(record.lines):,} rows, each linked to the one before it"


def fingerprints(record: Record) -> str:
    """Configuration and environment are those that the run began with, and result.json belongs to this log."""
    try:
        now = {
            "config": (record.config.where, chain.config_fingerprint(record.config.values)),
            "environment": (record.environment.where, chain.fingerprint(record.environment.values)),
        }
    except (TypeError, ValueError) as error:
        raise BreachError("config.yaml or environment.json holds values that no run writes") from error
    for witness in [record.rows[0], *([record.result] if record.finished else [])]:
        told = witness.section("fingerprints")
        for key, (file, found) in now.items():
            if told.sha256(key) != found:
                raise BreachError(f"{file} is not the one that {witness.where} has the fingerprint of: it was edited")
    if not record.finished:
        return "config.yaml and environment.json are those that the run began with"
    if record.result.section("fingerprints").sha256("log") != chain.link_of(record.lines[-1]):
        raise BreachError("the last row of log.jsonl is not the one that result.json was written after")
    return "config.yaml and environment.json are those that the run began with; result.json belongs to this log"


def finished(record: Record) -> str:
    """The run came to its end."""
    last = record.rows[-1]
    if not record.finished:
        failed = last.event == "end" and last.get("reason") == "failed"
        raise BreachError(f"failed: {shown(last.get('message'))}" if failed else "unfinished: no result.json")
    if last.event != "end" or last.get("reason") != "budget":
        raise BreachError(f"{last.where}, the last, is not the end of a finished run: {shown(last.event)}")
    if record.result.get("completed") is not True:
        raise record.result.unfit("completed", "true")
    return "the log ends where the budget was spent"


# -- what was trained ----------------------------------------------------------------------------------------------


def full_run(record: Record) -> str:
    """It is no smoke run."""
    if record.config.get("smoke") is not False:
        drawn = record.config.section("data").get("synthetic") is not False
        raise BreachError("smoke run on drawn images" if drawn else "smoke run")
    return "no smoke run"


def dataset(record: Record) -> str:
    """ImageNet-1k, and the same images throughout."""
    facts = record.environment.section("dataset")
    images = (facts.whole("train_images"), facts.whole("val_images"))
    if images != IMAGENET_IMAGES:
        raise BreachError(f"{images[0]:,} + {images[1]:,} images, not ImageNet-1k's")
    if (classes := facts.whole("classes")) != IMAGENET_CLASSES:
        raise BreachError(f"{classes:,} classes, not ImageNet-1k's {IMAGENET_CLASSES:,}")
    if record.config.section("data").get("synthetic") is not False:
        raise BreachError("drawn images, not ImageNet-1k's")
    fingerprint = facts.sha256("fingerprint")
    for row, changed in record.changes("dataset"):
        if not isinstance(changed, Mapping) or changed.get("fingerprint") != fingerprint:
            raise BreachError(f"{row.where}: resumed with another dataset")
    counts = f"{images[0]:,} + {images[1]:,} images of {classes:,} classes"
    return f"{counts}, fingerprint {fingerprint[:12]}{_packing(facts)}"


def _packing(facts: Fields) -> str:
    """How the images were packed, which is free, but stated; nothing for a folder."""
    if facts.get("packing") is None:
        return ""
    packing = facts.section("packing")
    kind = "raw pixels" if packing.get("raw") is True else f"JPEG quality {packing.whole('quality', low=1)}"
    source = packing.sha256("source_fingerprint")[:12]
    return (
        f"; packed: short side {packing.whole('short_side', low=1)} px, {kind}, {packing.whole('bytes') / 1e9:,.1f} GB"
        f", of the folder of fingerprint {source}"
    )


def from_scratch(record: Record) -> str:
    """The log begins before the first step."""
    first, *others = record.rows
    if first.event != "start":
        raise BreachError(f"{first.where}, the first, is {shown(first.event)}, not the start")
    began = [first.whole(key) for key in ("step", "samples_seen", "epoch")]
    if any(began) or first.section("clock").number("train_s"):
        raise BreachError(f"{first.where}: starts at step {began[0]:,}, not at 0")
    if again := next((row for row in others if row.event == "start"), None):
        raise BreachError(f"{again.where}: a second start")
    return "the log begins at step 0"


def one_gpu(record: Record) -> str:
    """One process on one GPU, also after every resume."""
    environment = record.environment
    gpus = [_gpu(environment, "")]
    if (processes := environment.whole("processes")) != 1:
        raise BreachError(f"{processes} processes, not one GPU")
    for row, changed in record.changes("processes"):
        raise BreachError(f"{row.where}: resumed with {shown(changed)} processes, not one GPU")
    for row, changed in record.changes("gpu"):
        gpus.append(_gpu(Fields({"gpu": changed}, row.where), f"{row.where}: resumed with "))
    return f"one process on one GPU: {', then '.join(dict.fromkeys(gpus))}"


def _gpu(holder: Fields, told: str) -> str:
    if holder.get("gpu") is None:
        raise BreachError(f"{told}no GPU")
    return holder.section("gpu").text("name")


def one_code(record: Record) -> str:
    """The same source files from start to end."""
    code = record.environment.section("code").sha256("fingerprint")
    for row, changed in record.changes("code"):
        raise BreachError(f"{row.where}: resumed with other code than the run began with: {shown(changed)}")
    here = "as here" if code == code_fingerprint() else "other than here"
    git = record.environment.get("git")
    commit = git.get("commit") if isinstance(git, Mapping) else None
    if not isinstance(commit, str):
        return f"fingerprint {code[:12]} ({here}), no commit recorded"
    return (
        f"fingerprint {code[:12]} ({here}), commit {commit[:12]}{'' if git.get('dirty') is False else ' with changes'}"
    )


# -- time ----------------------------------------------------------------------------------------------------------


def clock(record: Record) -> str:
    """Phases add up, never run backwards, and after a resume go on from the checkpoint it went back to."""
    for row in record.rows:
        parts = row.section("clock")
        total = sum(parts.number(phase) for phase in (*_PHASES, "lost_s"))
        if abs(total - parts.number("wall_s")) > _ROUNDING_S:
            raise BreachError(f"{parts.where}: its phases add up to {total:.3f} s, not to wall_s {parts.get('wall_s')}")
    for before, row in pairwise(record.in_order):
        if row.event == "resume":
            _clock_of_resume(record, before, row)
            continue
        for key in (*_PHASES, "lost_s"):
            if _seconds(row, key) < _seconds(before, key) - _ROUNDING_S:
                raise BreachError(f"{row.where}: clock: {key} runs backwards, from {_seconds(before, key)} s")
    if epochs := record.effective_rows_of("epoch"):
        in_epochs_s = sum(row.number("epoch_s") for row in epochs)
        if abs(in_epochs_s - _seconds(epochs[-1], "train_s")) > 1:
            raise BreachError(
                f"{epochs[-1].where}: train_s is {_seconds(epochs[-1], 'train_s')}, its epochs took {in_epochs_s}"
            )
    return "its phases add up and never run backwards"


def _clock_of_resume(record: Record, before: Row, row: Row) -> None:
    saved_after, saved_as = _checkpoint_of(record, row)
    latest = before if _saved_at_end(before) else saved_as
    for key in ("train_s", "eval_s", "checkpoint_s"):
        low = _seconds(saved_after, key) if saved_after else 0.0
        high = _seconds(latest, key) if latest else float("inf")
        if not saved_after and not _saved_at_end(before):
            high = 0.0
        if not low - _ROUNDING_S <= _seconds(row, key) <= high + _ROUNDING_S:
            raise BreachError(
                f"{row.where}: clock: {key} is {_seconds(row, key)} s after a resume, but its checkpoint was saved "
                f"between {low} and {high} s"
            )


def budget(record: Record) -> str:
    """At most 24 hours of the counted phases, as a budget of hours that was spent."""
    limit = record.config.section("budget")
    counts = limit.get("counts")
    if counts not in ("train", "all"):
        raise limit.unfit("counts", "train or all")
    if limit.get("hours") is None:
        kind = next((key for key in ("epochs", "steps") if limit.get(key) is not None), "nothing")
        raise BreachError(f"budget {shown(limit.get(kind))} {kind}, not {BUDGET_HOURS} h")
    hours = limit.number("hours")
    if hours > BUDGET_HOURS:
        raise BreachError(f"budget {hours:g} h, not {BUDGET_HOURS} h")
    phases = ("train_s",) if counts == "train" else _PHASES
    epochs = record.effective_rows_of("epoch")
    # The last evaluation and the saving come after the time is up, which a budget that counts them cannot change.
    ends = epochs[-1] if epochs else record.rows[-1]
    spent_s = max(sum(_seconds(ends, phase) for phase in phases), max(_seconds(row, "train_s") for row in record.rows))
    if spent_s > hours * 3600 + OVERRUN_S:
        raise BreachError(f"{spent_s / 3600:.3f} h of the counted phases, more than {hours:g} h")
    if record.finished and sum(_seconds(record.rows[-1], phase) for phase in phases) < hours * 3600 - 1:
        raise BreachError(f"ended after {spent_s / 3600:.3f} h though its budget is {hours:g} h: not by its budget")
    counted = "training" if counts == "train" else "training, evaluation, checkpoints and set-up"
    return f"{spent_s / 3600:.3f} h of {counted}, budget {hours:g} h"


def lost_time(record: Record) -> str:
    """What interruptions cost is in the record: the whole clock never goes back, and result.json says the same."""
    for before, row in pairwise(record.in_order):
        if _seconds(row, "wall_s") < _seconds(before, "wall_s") - _ROUNDING_S:
            missing_s = _seconds(before, "wall_s") - _seconds(row, "wall_s")
            raise BreachError(
                f"{row.where}: {missing_s:.3f} s that were run before it are in no phase and not in lost_s"
            )
        if row.event != "resume" and abs(_seconds(row, "lost_s") - _seconds(before, "lost_s")) > _ROUNDING_S:
            raise BreachError(f"{row.where}: clock: lost_s changes without a resume")
    lost_s, resumes = _seconds(record.rows[-1], "lost_s"), len(record.resumes)
    if _seconds(record.rows[0], "lost_s"):
        raise BreachError(f"{record.rows[0].where}: time is lost before the start")
    if record.finished and abs(record.result.section("clock").number("lost_s") - lost_s) > _ROUNDING_S:
        raise BreachError(f"result.json states {record.result.section('clock').get('lost_s')} s lost, its log {lost_s}")
    if not resumes:
        return "none: never interrupted"
    return f"{lost_s:,.0f} s lost in {resumes} interruption{'s' if resumes > 1 else ''}, run again outside the budget"


def time_stamps(record: Record) -> str:
    """The machine's clock tells the same story as the run's own. It may be set, so it proves nothing by itself."""
    stopped_s = 0.0
    for before, row in pairwise(record.in_order):
        passed_s = (_time(row) - _time(before)).total_seconds()
        ran_s = _seconds(row, "wall_s") - _seconds(before, "wall_s")
        allowed_s = 60 + 0.01 * abs(ran_s)
        if row.event == "resume":
            stopped_s += max(0.0, passed_s - ran_s)
        if passed_s < ran_s - allowed_s or (row.event != "resume" and passed_s > ran_s + allowed_s):
            raise UncheckableError(
                f"{row.where}: {passed_s:,.0f} s after the row before it by the machine's clock, {ran_s:,.0f} s by the "
                "run's: the machine's was set, or it slept"
            )
    first, last = _time(record.rows[0]), _time(record.rows[-1])
    stopped = f", stopped for {stopped_s / 3600:.2f} h of it" if record.resumes else ""
    return f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} {last.tzname()}{stopped}: agree with the run's clock"


# -- accuracy ------------------------------------------------------------------------------------------------------


def samples(record: Record) -> str:
    """Steps, samples and epochs follow from each other, from the batch size and from the number of images."""
    data, train_images = record.config.section("data"), record.environment.section("dataset").whole("train_images")
    multiple = data.whole("epoch_multiple", low=1)
    per_epoch = record.rows[0].whole("samples_per_epoch", low=1)
    if per_epoch != train_images // multiple * multiple:
        raise BreachError(f"{record.rows[0].where}: {per_epoch:,} samples an epoch do not follow from its images")
    for before, row in pairwise(record.in_order):
        if row.event == "resume":
            _position_of_resume(record, row)
            continue
        steps, seen, epochs = (row.whole(key) - before.whole(key) for key in ("step", "samples_seen", "epoch"))
        if min(steps, seen, epochs) < 0:
            raise BreachError(f"{row.where}: step, samples_seen or epoch runs backwards")
        small, large = sorted((before.whole("batch_size", low=1), row.whole("batch_size", low=1)))
        if not steps * small <= seen <= steps * large:
            raise BreachError(f"{row.where}: {seen:,} samples in {steps:,} steps of {large} since the row before")
    epochs, in_epochs = 0, 0
    for row in record.effective_rows_of("epoch"):
        images, complete = row.whole("images"), row.get("complete")
        epochs, in_epochs = epochs + (complete is True), in_epochs + images
        if images > per_epoch or (complete is True and images <= per_epoch - row.whole("batch_size", low=1)):
            raise BreachError(f"{row.where}: an epoch of {images:,} samples, expected {per_epoch:,}")
        if row.whole("epoch") != epochs:
            raise BreachError(f"{row.where}: epoch is {row.get('epoch')}, but {epochs} were completed")
        if row.whole("samples_seen") != in_epochs:
            raise BreachError(
                f"{row.where}: samples_seen is {row.get('samples_seen'):,}, its epochs have {in_epochs:,}"
            )
        if row.number("data_wait_s") > row.number("epoch_s") + 1:
            raise BreachError(f"{row.where}: waited longer for data than its epoch took")
    last = record.rows[-1]
    if record.finished and last.whole("samples_seen") != in_epochs:
        raise BreachError(f"{last.where}: samples_seen is {last.get('samples_seen'):,}, its epochs have {in_epochs:,}")
    return f"{last.whole('step'):,} steps, {last.whole('samples_seen'):,} samples, {epochs} whole epochs"


def _position_of_resume(record: Record, row: Row) -> None:
    saved_after, saved_as = _checkpoint_of(record, row)
    for key in ("step", "samples_seen", "epoch"):
        low = saved_after.whole(key) if saved_after else 0
        high = saved_as.whole(key) if saved_as else row.whole(key) if saved_after else 0
        if not low <= row.whole(key) <= high:
            raise BreachError(f"{row.where}: resumed at {key} {row.get(key):,}, its checkpoint was saved at {high:,}")


def evaluation(record: Record) -> str:
    """Every evaluation is of all validation images in the benchmark's way, and gives an accuracy that can be."""
    size = record.config.section("model").whole("image_size")
    if size != IMAGE_SIZE:
        raise BreachError(f"evaluated at {size} px, not {IMAGE_SIZE} px")
    ratio = record.config.section("data").number("eval_resize_ratio")
    if abs(ratio - RESIZE_RATIO) > 1e-6:
        raise BreachError(f"evaluated after a resize to {ratio:.4g} × {size} px, not to 256 px")
    images = record.environment.section("dataset").whole("val_images", low=1)
    evaluations = record.effective_rows_of("eval")
    for row in evaluations:
        _accuracy(row, images)
        _accuracy(Fields({**row.section("ema").values, "images": row.get("images")}, f"{row.where}: ema"), images)
    if record.finished:
        if not evaluations:
            raise BreachError("no evaluation in its log")
        _accuracy(record.result, images)
    return f"{len(evaluations)} evaluations, each of all {images:,} validation images at {size} px"


def _accuracy(told: Fields, val_images: int) -> None:
    if (images := told.whole("images")) != val_images:
        raise BreachError(f"{told.where}: evaluated on {images:,} of {val_images:,} images")
    top1, top5 = told.number("top1", high=100), told.number("top5", high=100)
    for key, percent in (("top1", top1), ("top5", top5)):
        right = percent * images / 100
        if abs(right - round(right)) > 0.001:
            raise BreachError(f"{told.where}: {key} {percent} % is no number of images out of {images:,}")
    if top1 > top5 + 1e-9:
        raise BreachError(f"{told.where}: top1 {top1} is more than top5 {top5}")


def last_weights(record: Record) -> str:
    """The result is the evaluation of the last weights, not of the best."""
    result, evaluations = record.result, record.effective_rows_of("eval")
    if not evaluations:
        raise BreachError("no evaluation in its log")
    last, steps = evaluations[-1], result.whole("steps")
    if last.whole("step") != steps:
        raise BreachError(f"{last.where}: the last evaluation is of step {last.get('step'):,}, the run has {steps:,}")
    for key in ("top1", "top5", "val_loss", "images", "ema"):
        if not same(result.get(key), last.get(key)):
            of = next((row for row in evaluations[:-1] if same(row.get(key), result.get(key))), None)
            where = f"that of {of.where}, epoch {of.get('epoch')}" if of else "that of no evaluation"
            raise BreachError(
                f"its result is not the last evaluation of its log: {key} {shown(result.get(key))} is {where}; "
                f"the last weights' is {shown(last.get(key))}"
            )
    return f"top-1 {result.number('top1', high=100):.3f} % is that of step {steps:,}, the last"


def result(record: Record) -> str:
    """result.json says what configuration and log say."""
    told, last = record.result, record.rows[-1]
    told.whole("parameters", low=1)
    config, began = record.config, [row for row in record.rows if row.event in ("start", "resume")]
    expected = [(key, config.get(key), config.where) for key in ("name", "profile", "smoke", "seed", "budget")]
    facts = ("parameters", "macs", "num_classes", "samples_per_epoch", "precision")
    expected += [(key, row.get(key), row.where) for row in began[-1:] for key in facts]
    expected += [
        ("steps", last.whole("step"), last.where),
        ("samples_seen", last.whole("samples_seen"), last.where),
        ("image_size", last.whole("image_size"), last.where),
        ("incidents", len(record.effective_rows_of("incident")), "log.jsonl"),
        ("train_hours", told.section("clock").number("train_s") / 3600, "its clock"),
    ]
    for key, value, where in expected:
        if value is None or not same(told.get(key), value):
            raise BreachError(f"result.json: {key} is {shown(told.get(key))}, by {where} {shown(value)}")
    if record.environment.get("seed") != config.get("seed"):
        raise BreachError(f"environment.json: seed is {shown(record.environment.get('seed'))}, by config.yaml another")
    classes = record.environment.section("dataset").get("classes")
    if told.get("num_classes") != classes:
        raise BreachError(
            f"result.json: num_classes is {shown(told.get('num_classes'))}, the dataset has {shown(classes)}"
        )
    whole = [row for row in record.effective_rows_of("epoch") if row.get("complete") is True]
    since = last.whole("samples_seen") - (whole[-1].whole("samples_seen") if whole else 0)
    epochs = len(whole) + since / told.whole("samples_per_epoch", low=1)
    if abs(told.number("epochs") - epochs) > 1e-6:
        raise BreachError(f"result.json: epochs is {told.get('epochs')}, by its log {epochs:.6f}")
    _clock_of_result(record, told.section("clock"))
    return "result.json says what config.yaml, environment.json and log.jsonl say"


def _clock_of_result(record: Record, told: Fields) -> None:
    """It was read between the last evaluation and the end."""
    evaluations = record.effective_rows_of("eval")
    for key in (*_PHASES, "lost_s", "wall_s"):
        low, high = _seconds(evaluations[-1], key) if evaluations else 0.0, _seconds(record.rows[-1], key)
        if not low - _ROUNDING_S <= told.number(key) <= high + _ROUNDING_S:
            raise BreachError(f"{told.where}: {key} is {told.get(key)}, by its log between {low} and {high}")


def weights(record: Record) -> str:
    """model.safetensors, where it is there, is what the run saved."""
    expected = record.result.section("fingerprints").sha256("weights")
    try:
        found = chain.file_sha256(record.path / "model.safetensors")
    except FileNotFoundError:
        raise UncheckableError(f"model.safetensors is not there; its SHA-256 is {expected}") from None
    except OSError as error:
        raise UncheckableError(f"model.safetensors cannot be read: {error.strerror}") from error
    if found != expected:
        raise BreachError(f"model.safetensors has SHA-256 {found[:12]}..., the run saved {expected[:12]}...")
    return f"model.safetensors is what the run saved, SHA-256 {found[:12]}..."


Rule = Callable[[Record], str]

RULES: dict[str, Rule] = {
    "files": files,
    "hash chain": hash_chain,
    "fingerprints": fingerprints,
    "finished": finished,
    "full run": full_run,
    "dataset": dataset,
    "from scratch": from_scratch,
    "one GPU": one_gpu,
    "one code": one_code,
    "clock": clock,
    "budget": budget,
    "lost time": lost_time,
    "samples": samples,
    "evaluation": evaluation,
    "last weights": last_weights,
    "result": result,
    "time stamps": time_stamps,
    "weights": weights,
}
MAY_BE_UNCHECKED = {"time stamps", "weights"}


# -- rows ----------------------------------------------------------------------------------------------------------


def _seconds(row: Row, key: str) -> float:
    return row.section("clock").number(key)


def _time(row: Row) -> datetime:
    try:
        time = datetime.fromisoformat(row.text("time"))
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise row.unfit("time", "a date and time with its zone")
    return time


def _saved_at_end(row: Row) -> bool:
    return row.event == "end" and row.get("saved") is True


def _checkpoint_of(record: Record, resume: Row) -> tuple[Row | None, Row | None]:
    """The last row before the checkpoint that a resume went back to was saved, and the row that reports it.

    (None, None) where it went back to the beginning; the report is None where the kill came before it.
    """
    rows_then = resume.whole("rows")
    if not rows_then:
        return None, None
    report = record.rows[rows_then]
    return record.rows[rows_then - 1], report if report.event == "checkpoint" else None
