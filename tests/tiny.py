"""Everything small: tasks, samples, networks and a searcher whose steps take milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mtlsearch as ms
from mtlsearch.namespace import pl
from mtlsearch.nn.gates import RELAXATIONS, Gates

SIZE = 32
CLASSES = 4
TINY = [
    "backbone=timm",
    "backbone.name=test_resnet",
    "tasks=[semantic,normals]",
    "dataset.size=32",
    "dataset.train=8",
    "dataset.val=2",
    "dataset.test=2",
    "dataset.batch_size=4",
    "epochs=1",
    "trainer.accelerator=cpu",
]
"""Arguments of a run of seconds."""
MAKERS: dict[str, Callable[..., ms.Task]] = {
    "semantic": partial(ms.tasks.segmentation, num_classes=CLASSES),
    "depth": ms.tasks.depth,
    "normals": ms.tasks.normals,
}
CHANNELS = {"semantic": CLASSES, "depth": 1, "normals": 3}
SGD = partial(torch.optim.SGD, lr=0.1)


def make_tasks(*names: str, plain: bool = False, **weights: float) -> list[ms.Task]:
    """Tasks by name, by default semantic and depth; `plain` ones have a head of one 1x1 convolution."""
    tasks = []
    for name in names or ("semantic", "depth"):
        head = {"head": point(CHANNELS[name])} if plain else {}
        tasks.append(MAKERS[name](name, weight=weights.get(name, 1.0), **head))
    return tasks


def point(out_channels: int) -> Callable[[Sequence[int], Sequence[int]], nn.Module]:
    return lambda channels, strides: Point(channels[-1], out_channels)


class Point(nn.Module):
    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.classify = nn.Conv2d(channels, out_channels, 1)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        return F.interpolate(self.classify(features[-1]), size=size)


def make_sample(seed: Sequence[int], size: int = SIZE) -> dict[str, Any]:
    """An image of random blocks with labels that follow from it, a random corner unlabelled."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = blocks.repeat(size // 4, axis=0).repeat(size // 4, axis=1)
    light = image.mean(axis=2, dtype=np.float32) / 256
    normals = image.transpose(2, 0, 1).astype(np.float32) - 127.5
    normals /= np.linalg.norm(normals, axis=0)
    sample = {
        "image": image,
        "semantic": (CLASSES * light).astype(np.int64),
        "depth": 1 + light[None],
        "normals": normals,
    }
    corner = rng.integers(0, size // 2)
    sample["semantic"][:corner, :corner] = 255
    sample["depth"][:, :corner, :corner] = np.nan
    sample["normals"][:, :corner, :corner] = np.nan
    return sample


class TinyData(ms.data.TaskData):
    """Made-up samples.

    Args:
        sizes: number of images by split.
        missing: by task, the training images that nobody labelled for it.
    """

    def __init__(
        self,
        tasks: Sequence[ms.Task] | None = None,
        *,
        sizes: tuple[int, int, int] = (8, 5, 3),
        missing: Mapping[str, Collection[int]] | None = None,
        batch_size: int = 4,
        **others: Any,
    ) -> None:
        super().__init__(tasks=tasks or make_tasks(), batch_size=batch_size, **others)
        self.sizes = dict(zip(("train", "val", "test"), sizes))
        self.missing = dict(missing or {})

    def samples(self, split: str) -> list[dict[str, Any]]:
        samples = [make_sample([len(split), i]) for i in range(self.sizes[split])]
        if split == "train":
            for task, indices in self.missing.items():
                for i in indices:
                    samples[i][task] = None
        return samples


class BoxData(TinyData):
    """Made-up samples with boxes too: the first of three images has none, the next a black one, the last both a
    black and a white one."""

    def samples(self, split: str) -> list[dict[str, Any]]:
        samples = [make_sample([len(split), i]) for i in range(self.sizes[split])]
        for number, sample in enumerate(samples):
            rng = np.random.default_rng([len(split), number])
            rows = []
            for kind in range(number % 3):  # the first image has no box
                x, y = rng.integers(0, 20, 2)
                width, height = rng.integers(6, 13, 2)
                sample["image"][y : y + height, x : x + width] = (0, 255)[kind]
                rows.append((x, y, x + width, y + height))
            boxes = np.array(rows, dtype=np.float32).reshape(-1, 4)
            sample["detection"] = {"boxes": boxes, "labels": np.arange(len(rows))}
            for task, indices in self.missing.items():
                if split == "train" and number in indices:
                    sample[task] = None
        return samples


@dataclass(frozen=True)
class ToyArchitecture(ms.Architecture):
    """For each task, whether it reads the extra layer."""

    on: list[bool]

    kind = "toy"

    def build(self, tasks: Any = None, backbone: Any = None) -> nn.Module:
        if tasks is None:
            raise ValueError("A toy needs its tasks: pass `tasks=`.")
        return ToyNetwork(tasks, [name for name, on in zip(self.tasks, self.on) if on])


class ToyNetwork(nn.Module):
    """A layer for all tasks, and an extra one for some; BatchNorm and dropout if wanted."""

    def __init__(
        self, tasks: Sequence[ms.Task], extra: Sequence[str], *, norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.reads = list(extra)
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.extra = nn.Conv2d(3, 6, 3, padding=1) if extra else None
        self.heads = nn.ModuleDict({task.name: task.head([6], [1]) for task in tasks})

    def forward(
        self, image: Tensor, tasks: Sequence[str] | None = None, gates: Tensor | None = None
    ) -> dict[str, Tensor]:
        own = self.dropout(self.norm(self.stem(image)).relu())
        predictions = {}
        for name in self.heads if tasks is None else tasks:
            features = own
            if name in self.reads and self.extra is not None:
                gate = 1.0 if gates is None else gates[self.reads.index(name)]
                features = own + gate * self.extra(image).tanh()
            predictions[name] = self.heads[name]([features], image.shape[-2:])
        return predictions


class ToySupernet(ms.Supernet):
    def __init__(self, tasks: Sequence[ms.Task], relaxation: str = "deterministic", **network: Any) -> None:
        super().__init__()
        self.tasks, self.settings = tasks, network
        self.network = ToyNetwork(tasks, [task.name for task in tasks], **network)
        self.gates = Gates(len(tasks), relaxation=RELAXATIONS[relaxation])

    def forward(
        self, image: Tensor, tasks: Sequence[str] | None = None, gates: Any = None
    ) -> dict[str, Tensor]:
        values = self.gates() if gates is None else torch.tensor(gates.on).float()
        predictions: dict[str, Tensor] = self.network(image, tasks, values)
        return predictions

    def arch_parameters(self) -> list[nn.Parameter]:
        return [self.gates.logits]

    def derive(self) -> ToyArchitecture:
        return self.architecture(self.gates.hard())

    def sample(self, generator: torch.Generator) -> ToyArchitecture:
        return self.architecture(self.gates.sample(generator))

    def architecture(self, on: Tensor) -> ToyArchitecture:
        return ToyArchitecture({task.name: None for task in self.tasks}, on.tolist())

    def extract(self, architecture: Any) -> nn.Module:
        extra = [name for name, on in zip(architecture.tasks, architecture.on) if on]
        network = ToyNetwork(self.tasks, extra, **self.settings)
        own = self.network.state_dict()
        network.load_state_dict({name: own[name] for name in network.state_dict()})
        return network


class ToySearcher(ms.Searcher):
    """The smallest searcher there can be."""

    def __init__(
        self,
        tasks: Sequence[ms.Task] | None = None,
        *,
        relaxation: str = "deterministic",
        norm: bool = False,
        dropout: float = 0.0,
        seed: int = 0,
        **training: Any,
    ) -> None:
        torch.manual_seed(seed)
        tasks = tasks or make_tasks(plain=True)
        supernet = ToySupernet(tasks, relaxation, norm=norm, dropout=dropout)
        super().__init__(supernet, tasks, seed=seed, **{"stage": "search", "optimizer": SGD, **training})

    def train_data(self, datamodule: pl.LightningDataModule) -> pl.LightningDataModule:
        return ms.data.Bilevel(datamodule, redraw=True, seed=self.seed)

    def anneal(self, progress: float) -> None:
        self.net.gates.temperature.fill_(1 - progress)


def make_trainer(max_epochs: int = 1, **others: Any) -> pl.Trainer:
    """A Trainer that writes and prints nothing."""
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(max_epochs=max_epochs, **{**quiet, **others})


def copy_state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def differing(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Names of the entries that are not bit for bit the same."""
    assert before.keys() == after.keys()
    return [name for name in before if not torch.equal(before[name], after[name])]


class Stop(pl.Callback):
    """Raises after so many epochs, once everything else has been done at their end."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epochs:
            raise Killed


class Killed(Exception):
    pass
