"""search(): every stage of a search, retraining included, from the first to the finished network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from mtlsearch import callbacks, files
from mtlsearch.architecture import Architecture
from mtlsearch.budget import INIT, ImageCount, budget, of_run
from mtlsearch.cost import backbone_params, cost
from mtlsearch.multitask import Batch, MultiTask, parts_of
from mtlsearch.namespace import check_trainer, pl, rank_zero_info
from mtlsearch.nn.statistics import average_buffers, recompute_statistics
from mtlsearch.searcher import Searcher
from mtlsearch.task import Task, metric_breakdowns, metric_directions

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What a search ends in.

    Args:
        architecture: what was found.
        network: it, with the trained weights, in eval mode: `network(image, tasks=None) -> {task: prediction}`.
        metrics: the content of `metrics.json`.
    """

    architecture: Architecture
    network: nn.Module
    metrics: Metrics


def search(
    searcher: Any,
    datamodule: pl.LightningDataModule,
    *,
    trainer: Callable[[str], pl.Trainer] = lambda stage: pl.Trainer(max_epochs=20, logger=False),
    dir: str | Path = "mtlsearch_run",
) -> Result:
    """Run all stages, evaluate, and write the run's folder.

    A search that was stopped at any moment continues when it is called again with the same arguments: each
    stage goes on from `<stage>/last.ckpt`, its last finished epoch. One that is finished returns at once.

    Args:
        searcher: a Searcher, or a baseline.
        datamodule: gives train, validation and test batches; only the first two have to be there.
        trainer: makes the Trainer of a stage from its name; "evaluate" is the last one's. Checkpoints,
            curves and progress bar are added to it.
        dir: gets architecture.json, model.safetensors, metrics.json, metrics.csv and the checkpoints.

    Raises:
        ValueError: no data, a batch without labels, a loss that is not finite: the message says what to do.
    """
    dir = Path(dir)
    if (dir / "metrics.json").exists():
        network = load(dir, searcher.tasks)
        return Result(read_architecture(dir), network, json.loads((dir / "metrics.json").read_text()))
    seconds: dict[str, float] = {}
    images: dict[str, ImageCount] = {}
    stage = searcher.first_stage()
    while stage is not None:
        seconds[stage.stage] = fit(stage, datamodule, trainer(stage.stage), dir)
        images[stage.stage] = stage.images
        stage = searcher.next_stage(stage)
    evaluator = trainer("evaluate")
    finalists = [(architecture, network.eval()) for architecture, network in searcher.finalists()]
    if searcher.recomputes_statistics:
        for _, network in finalists:
            recompute(network, searcher, datamodule, evaluator)
    (architecture, network), metrics = choose(searcher, finalists, datamodule, evaluator)
    if evaluator.is_global_zero:
        image = _one_image(datamodule, searcher.unpack)
        metrics["cost"] = cost(network.cpu(), image, [task.name for task in searcher.tasks])
        if searcher.single_task_backbone_params is not None:
            metrics["cost"]["single_task_backbone_params"] = searcher.single_task_backbone_params
        metrics |= spent(searcher, images, seconds, metrics.get("chosen", 0))
        files.write(dir / "architecture.json", architecture.to_json())
        files.write(dir / "model.safetensors", save(_whole(network)))
        files.write(dir / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    evaluator.strategy.barrier()
    return Result(architecture, network, metrics)


def fit(stage: MultiTask, datamodule: pl.LightningDataModule, trainer: pl.Trainer, dir: Path) -> float:
    """Train one stage, from its last checkpoint if there is one; the seconds that it took in all."""
    check_trainer(trainer)
    clock = callbacks.attach(trainer, stage, dir)
    last = dir / stage.stage / "last.ckpt"
    if last.exists():
        rank_zero_info(f"{stage.stage}: resuming from {last}")
    path = last if last.exists() else None
    trainer.fit(stage, datamodule=stage.train_data(datamodule), ckpt_path=path, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    return clock.seconds


def spent(
    searcher: Any, images: Mapping[str, ImageCount], seconds: Mapping[str, float], chosen: int
) -> Metrics:
    """Seconds and labelled images by stage, and the budget that they come to."""
    carried = searcher.carried(list(images), chosen)
    weights = {stage: count.by_group["weights"] for stage, count in images.items()}
    arch = {stage: count.by_group["arch"] for stage, count in images.items()}
    arch = {stage: counts for stage, counts in arch.items() if any(counts.values())}
    if searcher.inherited_run is not None:
        given, before = of_run(searcher.inherited_run)
        weights, seconds, carried = {INIT: given, **weights}, {INIT: before, **seconds}, [INIT, *carried]
    return {
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "images": weights,
        "arch_images": arch,
        "carried": carried,
        "budget": budget(weights, arch, carried, [task.name for task in searcher.tasks]),
    }


def recompute(
    network: nn.Module,
    searcher: Any,
    datamodule: pl.LightningDataModule,
    trainer: pl.Trainer,
    *,
    batches: int = 200,
) -> None:
    """Compute the running statistics of a network's BatchNorm anew, from so many training batches at most."""
    loader: Any = datamodule.train_dataloader()
    device = trainer.strategy.root_device
    names = [task.name for task in searcher.tasks]

    def images() -> Iterator[tuple[torch.Tensor, list[str]]]:
        for batch in islice(loader, batches):
            for part in parts_of(batch):
                part = searcher.unpack(part) if searcher.unpack is not None else part
                yield part["image"].to(device), [name for name in names if name in part]

    recompute_statistics(network.to(device), images())
    average_buffers(network)


Finalist = tuple[Architecture, nn.Module]


def choose(
    searcher: Any, finalists: Sequence[Finalist], datamodule: pl.LightningDataModule, trainer: pl.Trainer
) -> tuple[Finalist, Metrics]:
    """The finalist with the lowest validation loss, and the metrics of the run.

    These are its own on validation and test data; those of every finalist where there are several; for a
    search, of its supernet too, and of samples of its architecture on validation data.
    """

    def measure(network: nn.Module, splits: Sequence[str] = ("val", "test")) -> Metrics:
        return evaluate(network, searcher.tasks, datamodule, trainer, splits=splits, unpack=searcher.unpack)

    measured = [measure(network) for _, network in finalists]
    best = min(range(len(finalists)), key=lambda i: measured[i]["val"]["loss"])
    metrics = dict(measured[best])
    if len(finalists) > 1:
        metrics["retrained"] = [
            {
                **found,
                "backbone_params": backbone_params(network),
                "select": getattr(architecture, "select", None),
            }
            for found, (architecture, network) in zip(measured, finalists)
        ]
        metrics["chosen"] = best
    if isinstance(searcher, Searcher) and (supernet := searcher.supernet()) is not None:
        metrics["supernet"] = measure(supernet)
        generator = torch.Generator().manual_seed(searcher.seed)
        known: dict[str, Any] = {finalists[best][0].to_json(): metrics["val"]}
        metrics["samples"] = []
        for _ in range(getattr(searcher, "samples", 0)):
            sample = supernet.sample(generator)
            key = sample.to_json()
            if key not in known:
                known[key] = measure(supernet.extract(sample), splits=("val",))["val"]
            metrics["samples"].append(known[key])
    metrics["directions"] = metric_directions(searcher.tasks)
    metrics["breakdowns"] = metric_breakdowns(searcher.tasks)
    return finalists[best], metrics


def evaluate(
    network: nn.Module,
    tasks: Sequence[Task],
    datamodule: pl.LightningDataModule,
    trainer: pl.Trainer,
    *,
    splits: Sequence[str] = ("val", "test"),
    unpack: Callable[[Any], Batch] | None = None,
) -> Metrics:
    """{"val": {task: {metric: number}, "loss": number}, "test": ...} of a network."""
    module = MultiTask(network, tasks, unpack=unpack)
    metrics: Metrics = {}
    for split in splits:
        if split == "test" and not _has(datamodule, "test_dataloader"):
            continue
        run = trainer.validate if split == "val" else trainer.test
        logged = run(module, datamodule=datamodule, verbose=False)[0]
        metrics[split] = {}
        for name, value in logged.items():
            _, task, *metric = name.split("/")
            if metric:
                metrics[split].setdefault(task, {})[metric[0]] = value
            else:
                metrics[split][task] = value
    return metrics


def read_architecture(dir: Path) -> Architecture:
    """The architecture of the run in a folder; a ValueError that says what is missing or wrong."""
    path = dir / "architecture.json"
    if not path.exists():
        raise ValueError(f"{path} is not there: {dir} is not the folder of a finished run.")
    try:
        return Architecture.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load(dir: str | Path, tasks: Sequence[Task] | None = None, backbone: Any = None) -> nn.Module:
    """The finished network of a run, in eval mode, from `architecture.json` and `model.safetensors` alone.

    Args:
        dir: the run's folder. Nothing in it is executed, so it may be a stranger's.
        tasks, backbone: needed where they are your own.

    Raises:
        ValueError: a file is missing, damaged, or does not fit the other.
    """
    dir = Path(dir)
    network = read_architecture(dir).build(tasks, backbone)
    path = dir / "model.safetensors"
    try:
        state = load_file(path)
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit architecture.json: {error}") from error
    return network.eval()


def _whole(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}


def _has(datamodule: pl.LightningDataModule, hook: str) -> bool:
    """Whether a datamodule writes a hook of its own."""
    return getattr(type(datamodule), hook) is not getattr(pl.LightningDataModule, hook)


def _one_image(
    datamodule: pl.LightningDataModule, unpack: Callable[[Any], Batch] | None = None
) -> torch.Tensor:
    loader: Any = datamodule.val_dataloader()
    batch = next(iter(loader))
    image: torch.Tensor = (unpack(batch) if unpack is not None else batch)["image"][:1]
    return image.cpu()
