"""What a run leaves behind at the end of every epoch."""

import csv
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from mtlsearch.callbacks import Clock, Curves, LastCheckpoint, attach
from tiny import Killed, Stop, TinyData, ToySearcher, make_trainer


def fit(searcher, *callbacks, max_epochs=2, resume=None):
    trainer = make_trainer(max_epochs)
    trainer.callbacks += callbacks
    trainer.fit(searcher, TinyData(searcher.tasks), ckpt_path=resume, weights_only=True)
    return trainer


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_last_checkpoint_is_of_the_last_finished_epoch(tmp_path):
    path = tmp_path / "stage" / "last.ckpt"
    with pytest.raises(Killed):
        fit(ToySearcher(), LastCheckpoint(path), Stop(2), max_epochs=5)
    content = torch.load(path, weights_only=True)
    assert content["epoch"] == 1 and content["global_step"] == 2 * 2 * 2
    assert len(content["optimizer_states"]) == 2
    assert list(path.parent.iterdir()) == [path]


def test_checkpoints_keep_their_distance_but_for_the_first_and_the_last(tmp_path):
    path = tmp_path / "last.ckpt"

    def epoch_after(epochs):
        with pytest.raises(Killed):
            fit(ToySearcher(), LastCheckpoint(path, seconds=1000), Stop(epochs), max_epochs=5)
        return torch.load(path, weights_only=True)["epoch"]

    assert [epoch_after(epochs) for epochs in (1, 2, 4)] == [0, 0, 0]
    fit(ToySearcher(), LastCheckpoint(path, seconds=1000), max_epochs=3)
    assert torch.load(path, weights_only=True)["epoch"] == 2


def test_a_checkpoint_that_fails_in_the_middle_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    trainer = fit(ToySearcher(), LastCheckpoint(path))
    good = path.read_bytes()

    def half(target, **_):
        target.write_bytes(good[: len(good) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer, "save_checkpoint", half)
    with pytest.raises(OSError, match="No space left"):
        LastCheckpoint(path).on_train_epoch_end(trainer, trainer.lightning_module)
    assert path.read_bytes() == good


def test_an_epoch_that_ends_in_an_error_leaves_no_checkpoint(tmp_path):
    searcher = ToySearcher()
    data = TinyData(searcher.tasks, missing={"depth": range(8)})
    trainer = make_trainer(1)
    attach(trainer, searcher, tmp_path)
    with pytest.raises(ValueError, match="Task 'depth' had no label"):
        trainer.fit(searcher, data)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_curves_have_a_row_an_epoch_for_all_stages(tmp_path):
    path = tmp_path / "metrics.csv"
    fit(ToySearcher(), Curves(path, "first"))
    searcher = ToySearcher()
    searcher.regularization = lambda progress: (
        searcher.log("train/extra", 1.0, on_step=False, on_epoch=True) or {}
    )
    fit(searcher, Curves(path, "second"), max_epochs=1)
    found = rows(path)
    assert [(row["stage"], row["epoch"], row["step"]) for row in found] == [
        ("first", "0", "4"),
        ("first", "1", "8"),
        ("second", "0", "4"),
    ]
    assert [row["train/extra"] for row in found] == ["", "", "1.0"]
    for name in ("train/weights/semantic", "train/arch/depth", "val/semantic/miou", "val/loss"):
        assert all(float(row[name]) >= 0 for row in found)


def test_curves_have_what_the_module_logs_at_the_end_of_the_same_epoch(tmp_path):
    class Late(ToySearcher):
        def on_train_epoch_end(self):
            super().on_train_epoch_end()
            self.log("arch/epoch", float(self.current_epoch))

    fit(Late(), Curves(tmp_path / "metrics.csv", "search"))
    assert [row["arch/epoch"] for row in rows(tmp_path / "metrics.csv")] == ["0.0", "1.0"]


def test_curves_drop_the_rows_of_epochs_that_are_done_again_and_keep_the_others(tmp_path):
    path, checkpoint = tmp_path / "metrics.csv", tmp_path / "last.ckpt"
    fit(ToySearcher(), Curves(path, "before"), max_epochs=1)
    with pytest.raises(Killed):
        fit(ToySearcher(), LastCheckpoint(checkpoint), Curves(path, "search"), Stop(2), max_epochs=4)
    text = path.read_text()
    redone = text.splitlines()[-1].replace("search,1,", "search,2,")  # killed after the row, before the state
    path.write_text(text + redone + "\n")
    fit(ToySearcher(), Curves(path, "search"), max_epochs=4, resume=checkpoint)
    found = rows(path)
    assert [(row["stage"], row["epoch"]) for row in found] == [
        ("before", "0"),
        *[("search", str(epoch)) for epoch in range(4)],
    ]
    assert found[3] != rows_of(text + redone + "\n")[3]


def rows_of(text):
    return list(csv.DictReader(text.splitlines()))


def test_a_stage_that_begins_anew_begins_its_curves_anew(tmp_path):
    path = tmp_path / "metrics.csv"
    for epochs in (3, 2):
        fit(ToySearcher(), Curves(path, "search"), max_epochs=epochs)
    assert [row["epoch"] for row in rows(path)] == ["0", "1"]


def test_the_clock_counts_the_seconds_before_a_resume(tmp_path, monkeypatch):
    now = count(step=10)
    monkeypatch.setattr("mtlsearch.callbacks.time", SimpleNamespace(monotonic=lambda: next(now)))
    path = tmp_path / "last.ckpt"
    clock = Clock()
    with pytest.raises(Killed):
        fit(ToySearcher(), clock, LastCheckpoint(path), Stop(2), max_epochs=3)
    assert (
        clock.seconds == 40
    )  # ten a look at the clock: one for the first epoch, three with the checkpoint's two
    again = Clock()
    fit(ToySearcher(), again, max_epochs=3, resume=path)
    assert again.seconds == 50


def test_the_bar_prints_a_line_where_there_is_no_terminal(tmp_path, capsys):
    searcher = ToySearcher()
    trainer = make_trainer(2)
    attach(trainer, searcher, tmp_path)
    trainer.fit(searcher, TinyData(searcher.tasks))
    out = capsys.readouterr().out
    assert "search: epoch 2 of 2" in out and "val loss" in out
