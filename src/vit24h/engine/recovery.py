"""Going on after what is not training's fault: a dataset that is away for a while, a killed worker, a full disk.

Must not know: the model, the loop, the clock.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from vit24h.data import Dataset, DatasetGoneError, LoaderFault
from vit24h.records import RunFolder

Result = TypeVar("Result")

_LOOK_EVERY_S = 1.0
_REBUILDS = 3  # of a loader within an hour whose workers are killed: a fourth time it is not by chance
_WITHIN_S = 3600.0


class TrainingFailed(Exception):  # noqa: N818
    """The run cannot go on; the message says why, and what can be done. `saved`: the next start loses nothing."""

    saved = False


class Recovery:
    """Waits out what may pass, tells it as incidents, and gives up in words.

    Args:
        wait_minutes: how long to wait for the dataset to be back, or for room on the disk.
        incident: tells (kind, **details).
        meanwhile: called about once a second while waiting; may raise to end the wait.
        save: saves a checkpoint; whether it could.
    """

    def __init__(
        self,
        folder: RunFolder,
        dataset: Dataset,
        *,
        wait_minutes: float,
        incident: Callable[..., None],
        meanwhile: Callable[[], None],
        save: Callable[[], bool],
    ) -> None:
        self._folder = folder
        self._dataset = dataset
        self._wait_s = 60 * wait_minutes
        self._incident = incident
        self._meanwhile = meanwhile
        self._save = save
        self._rebuilt: deque[float] = deque(maxlen=_REBUILDS)

    def loading(self, load: Callable[[], Result], rebuild: Callable[[], Any]) -> Result:
        """The result of `load`; where its loader breaks, `rebuild` makes it anew at the same place.

        Raises:
            TrainingFailed: the dataset stays away, or the loader breaks time and again.
        """
        while True:
            try:
                return load()
            except LoaderFault as fault:
                if isinstance(fault, DatasetGoneError):
                    self._wait_for_the_dataset(fault)
                else:
                    self._count_rebuild(fault)
                rebuild()

    def writing(self, write: Callable[[], Any]) -> None:
        """Call `write` until it succeeds and every row of the log is on the disk.

        Raises:
            TrainingFailed: the disk stays full or read-only.
        """
        since, told = time.monotonic(), False
        while True:
            try:
                if not self._folder.flush():
                    raise OSError(0, self._folder.problem)
                return write()
            except OSError as error:
                reason = error.strerror or str(error)
            if not told:
                self._incident("waiting_to_write", reason=reason, at_most_minutes=self._wait_s / 60)
                told = True
            if time.monotonic() - since >= self._wait_s:
                raise TrainingFailed(
                    f"{self._folder.path}: cannot be written ({reason}), after {self._wait_s / 60:.3g} minutes of "
                    "waiting: make room or mount it writable, and start again: it goes on from the last checkpoint"
                )
            self._pause()

    def _wait_for_the_dataset(self, fault: DatasetGoneError) -> None:
        since = time.monotonic()
        self._incident("dataset_gone", reason=str(fault), at_most_minutes=self._wait_s / 60)
        while not (self._dataset.train.is_there() and self._dataset.val.is_there()):
            if time.monotonic() - since >= self._wait_s:
                failure = TrainingFailed(
                    f"{fault}; it was not back after {self._wait_s / 60:.3g} minutes: bring it back and start again"
                )
                failure.saved = self._save()
                raise failure
            self._pause()
        self._incident("dataset_back", after_s=round(time.monotonic() - since, 1))

    def _count_rebuild(self, fault: LoaderFault) -> None:
        now = time.monotonic()
        if len(self._rebuilt) == _REBUILDS and now - self._rebuilt[0] < _WITHIN_S:
            failure = TrainingFailed(f"{fault}; this is the {_REBUILDS + 1}th time within an hour")
            failure.saved = self._save()
            raise failure
        self._rebuilt.append(now)
        self._incident("loader_rebuilt", reason=str(fault))

    def _pause(self) -> None:
        self._meanwhile()
        time.sleep(_LOOK_EVERY_S)
