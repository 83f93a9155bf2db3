"""What every searcher has to fulfil, as one test: `check_searcher`.

def test_mine():
    check_searcher(lambda tasks: Mine(tasks, backbone="test_resnet"), datamodule)

Each part is a function of its own, to run alone what fails.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mtlsearch.architecture import Architecture
from mtlsearch.backbones import Backbone
from mtlsearch.data import TaskData
from mtlsearch.multitask import Batch
from mtlsearch.namespace import pl
from mtlsearch.searcher import Searcher
from mtlsearch.supernet import Supernet
from mtlsearch.task import Task

Make = Callable[[Sequence[Task]], Searcher]


def check_searcher(make: Make, datamodule: TaskData, *, backbone: Backbone | None = None) -> None:
    """Check a searcher on the first one, two, ... of the datamodule's tasks.

    Args:
        make: `make(tasks)` builds the searcher, the same one every time.
        datamodule: small images of some tasks, three to see K = 1, 2 and 3, and few batches an epoch: each K
            takes seven epochs.
        backbone: needed where it is not a timm model.

    Raises:
        AssertionError: the message says which promise is broken.
    """
    tasks = datamodule.tasks
    for count in range(1, len(tasks) + 1):
        chosen = tasks[:count]
        check_parameters(make, chosen)
        check_updates(make(chosen), datamodule)
        check_architectures(make(chosen), datamodule, backbone)
        check_resume(make, chosen, datamodule)


def check_parameters(make: Make, tasks: Sequence[Task]) -> None:
    """Arch parameters have an order and are no weights, and a searcher is made the same way twice."""
    searcher, again = make(tasks), make(tasks)
    net = searcher.net
    arch, asked_again, weights = net.arch_parameters(), net.arch_parameters(), net.weights()
    _expect(_ids(arch) == _ids(asked_again), "arch_parameters() gives another order when asked again")
    _expect(set(_ids(arch)) <= set(_ids(net.parameters())), "an arch parameter is none of the supernet's")
    _expect(not set(_ids(arch)) & set(_ids(weights)), "an arch parameter is a weight as well")
    _expect(
        len(arch) + len(weights) == len(list(net.parameters())), "a parameter is in neither group or twice"
    )
    groups = [
        [p for group in o.param_groups for p in group["params"]] for o in searcher.configure_optimizers()
    ]
    held = [set(_ids(group)) for group in groups]
    _expect(held == [set(_ids(part)) for part in (weights, arch) if part], "the optimisers mix the groups")
    _expect(_same(_state(net), _state(again.net)), "make(tasks) gives other initial values when called again")


def check_updates(searcher: Searcher, datamodule: TaskData) -> None:
    """An update moves its own group and leaves the other bit for bit; only that of the weights moves norms."""
    net = searcher.net
    moved: set[str] = set()

    def watch(group: str, step: Callable[[], None]) -> None:
        values: dict[str, Sequence[Tensor]] = {
            "weights": net.weights(),
            "arch": net.arch_parameters(),
            "norms": _statistics(net),
        }
        before = {name: _copy(parts) for name, parts in values.items()}
        step()
        changed = {name for name, parts in values.items() if not _same(before[name], _copy(parts))}
        allowed = {"weights", "norms"} if group == "weights" else {"arch"}
        _expect(changed <= allowed, f"an update of the {group} changes the {sorted(changed - allowed)}")
        moved.update(changed)

    update, arch_step = searcher.update, searcher.arch_step

    def watched_update(group: str, batch: Batch, batch_index: int) -> None:
        watch(group, lambda: update(group, batch, batch_index))

    def watched_arch_step(batch: Batch, batch_index: int) -> None:
        watch("arch", lambda: arch_step(batch, batch_index))

    searcher.update, searcher.arch_step = watched_update, watched_arch_step  # type: ignore[method-assign]
    _train(searcher, datamodule, epochs=2)
    _expect("weights" in moved, "two epochs do not change the weights")
    _expect("arch" in moved or not net.arch_parameters(), "two epochs do not change the arch parameters")


def check_architectures(searcher: Searcher, datamodule: TaskData, backbone: Backbone | None = None) -> None:
    """What a search ends in, and what it may draw, is data that builds the network that was trained."""
    _train(searcher, datamodule, epochs=1)
    net, tasks = searcher.net.eval(), searcher.tasks
    image = next(iter(datamodule.val_dataloader()))["image"]
    noise = torch.get_rng_state()
    drawn = [net.sample(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    _expect(drawn[0] == drawn[1], "sample(generator) gives another architecture from the same generator")
    _expect(torch.equal(noise, torch.get_rng_state()), "sample(generator) draws from another generator")
    _expect(searcher.derive() == searcher.derive(), "derive() gives another architecture when asked again")
    for architecture in (searcher.derive(), *drawn[1:]):
        again = Architecture.from_json(architecture.to_json())
        _expect(again == architecture, "an architecture changes on its way through JSON")
        network = net.extract(architecture).eval()
        check_plain(network, net)
        rebuilt = again.build(tasks, backbone)
        rebuilt.load_state_dict(network.state_dict())
        rebuilt.eval()
        with torch.no_grad():
            predictions = network(image)
            _close(
                rebuilt(image), predictions, "build()'s network with extract()'s weights predicts otherwise"
            )
            alone = {task.name: network(image, [task.name])[task.name] for task in tasks}
            _close(alone, predictions, "a task alone is predicted otherwise than with the others")
            if net.exact:
                hard = net(image, gates=architecture)
                _close(hard, predictions, "extract()'s network is not the supernet under hard gates")


def check_plain(network: nn.Module, net: Supernet) -> None:
    """A derived network is a plain one, with copies of the weights and without arch parameters."""
    kinds = Supernet | pl.LightningModule
    _expect(
        not any(isinstance(part, kinds) for part in network.modules()), "extract() gives no plain network"
    )
    shared = set(_ids(network.parameters())) & set(_ids(net.parameters()))
    _expect(not shared, "extract() shares parameters with the supernet: copy them")
    arch = set(_ids(net.arch_parameters()))
    names = {name.rpartition(".")[2] for name, parameter in net.named_parameters() if id(parameter) in arch}
    kept = [name for name, _ in network.named_parameters() if name.rpartition(".")[2] in names]
    _expect(not kept, f"extract() keeps arch parameters: {kept}")


def check_resume(make: Make, tasks: Sequence[Task], datamodule: TaskData) -> None:
    """Two epochs, and one epoch and another after a resume, end with the same bytes."""
    whole = make(tasks)
    _train(whole, datamodule, epochs=2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.ckpt"
        _train(make(tasks), datamodule, epochs=2, save=path)
        resumed = make(tasks)
        torch.manual_seed(1)
        _train(resumed, datamodule, epochs=2, resume=path)
    _expect(_same(_state(whole.net), _state(resumed.net)), "a resumed search ends with other values")


class _Save(pl.Callback):
    """Saves the state after the first epoch and stops there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.path)
        trainer.should_stop = True


def _train(
    searcher: Searcher,
    datamodule: TaskData,
    *,
    epochs: int,
    save: Path | None = None,
    resume: Path | None = None,
) -> None:
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[_Save(save)] if save is not None else [],
    )
    data = searcher.train_data(datamodule)
    trainer.fit(searcher, datamodule=data, ckpt_path=resume, weights_only=True)


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(f"{otherwise}.")


def _ids(parameters: Iterable[nn.Parameter]) -> list[int]:
    return [id(parameter) for parameter in parameters]


def _copy(values: Iterable[Tensor]) -> dict[str, Tensor]:
    return {str(i): value.detach().clone() for i, value in enumerate(values)}


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _statistics(module: nn.Module) -> list[Tensor]:
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    return [value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None]


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def _close(found: dict[str, Tensor], expected: dict[str, Tensor], otherwise: str) -> None:
    _expect(found.keys() == expected.keys(), f"{otherwise}: tasks {sorted(found)}, not {sorted(expected)}")
    for name, prediction in expected.items():
        worst = float((found[name] - prediction).abs().max())
        _expect(
            torch.allclose(found[name], prediction, atol=1e-4, rtol=1e-4), f"{otherwise}: {name!r} by {worst}"
        )
