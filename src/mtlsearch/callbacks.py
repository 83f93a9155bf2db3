"""What `search` hangs on a Trainer: checkpoints, curves, a clock and a progress bar."""

from __future__ import annotations

import csv
import io
import math
import sys
import time
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mtlsearch import files
from mtlsearch.multitask import MultiTask
from mtlsearch.namespace import pl


class LastCheckpoint(pl.callbacks.Checkpoint):
    """The state after a finished epoch, replaced in one move, so that there always is a whole one.

    Being a Checkpoint it comes after all else at the end of an epoch, so that no error there is passed over.

    Args:
        path: of the file.
        seconds: at least so much time passes between two of them, the first and the last epoch excepted.
    """

    def __init__(self, path: Path, *, seconds: float = 0.0) -> None:
        self.path = path
        self.seconds = seconds
        self._saved = -math.inf

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        due = last or time.monotonic() - self._saved >= self.seconds
        if not trainer.strategy.broadcast(due):  # every process takes part in saving
            return
        temporary = self.path.with_name(f".{self.path.name}")
        trainer.save_checkpoint(temporary, weights_only=False)
        if trainer.is_global_zero:
            temporary.replace(self.path)
        self._saved = time.monotonic()


class Clock(pl.Callback):
    """Seconds of training, those before a resume included."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started: float | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._started is not None:
            now = time.monotonic()
            self.seconds += now - self._started
            self._started = now

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]


class Curves(pl.callbacks.Checkpoint):
    """One row an epoch of all that was logged, in one CSV file for all stages of a run.

    Being a Checkpoint it comes after the module's own end of an epoch, and sees what is logged there.
    """

    def __init__(self, path: Path, stage: str) -> None:
        self.path = path
        self.stage = stage
        self.rows: list[dict[str, Any]] = []

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.path.exists():
            with self.path.open(newline="") as file:
                self.rows = [
                    row
                    for row in csv.DictReader(file)
                    if row["stage"] != self.stage or int(row["epoch"]) < trainer.current_epoch
                ]

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        fixed = {"stage": self.stage, "epoch": trainer.current_epoch, "step": trainer.global_step}
        self.rows.append(fixed | values)
        if trainer.is_global_zero:
            names = dict.fromkeys(name for row in self.rows for name in row)
            text = io.StringIO()
            writer = csv.DictWriter(text, list(names), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            files.write(self.path, text.getvalue())


class Bar(pl.Callback):
    """One progress bar for a whole stage, with the time left; a line an epoch where there is no terminal."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._progress: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._batches = int(trainer.num_training_batches)
        self._last = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("batches"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            disable=not sys.stderr.isatty() and not sys.stdout.isatty(),
        )
        total = self._batches * trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        done = self._batches * trainer.current_epoch
        self._task = self._progress.add_task(self.stage, total=total, completed=done, loss="")
        self._progress.start()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self._progress is not None:
            self._progress.advance(self._task)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._progress is None:
            return
        metrics = trainer.callback_metrics
        loss = f"val loss {float(metrics['val/loss']):.3f}" if "val/loss" in metrics else ""
        self._progress.update(self._task, loss=loss)
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if self._progress.disable and (last or time.monotonic() - self._last > 10):
            self._last = time.monotonic()
            left = self._progress.tasks[self._task].time_remaining
            remaining = f", about {left:.0f} s left" if left else ""
            print(
                f"{self.stage}: epoch {trainer.current_epoch + 1} of {trainer.max_epochs}{remaining} {loss}",
                flush=True,
            )

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def attach(trainer: pl.Trainer, module: MultiTask, dir: Path) -> Clock:
    """Hang everything on a Trainer that is about to train a stage of the run in `dir`."""
    clock = Clock()
    stage = module.stage
    trainer.callbacks += [  # type: ignore[attr-defined]
        clock,
        Curves(dir / "metrics.csv", stage),
        LastCheckpoint(dir / stage / "last.ckpt", seconds=30),
        Bar(stage),
    ]
    return clock
