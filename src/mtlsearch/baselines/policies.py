"""Baselines that are settings of AdaShare's network: hard sharing, stochastic depth and random policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtlsearch.architecture import Architecture
from mtlsearch.backbones import Backbone, load
from mtlsearch.baselines.baseline import Baseline
from mtlsearch.baselines.candidates import Candidates
from mtlsearch.cost import backbone_params
from mtlsearch.nn.branches import Gates
from mtlsearch.searchers.distinct import distinct
from mtlsearch.searchers.policy import PolicyArchitecture, PolicyNetwork, Selection, policy_architecture
from mtlsearch.task import Task


class HardSharing(Baseline):
    """One backbone for all tasks with a head each: the papers' "Multi-Task" baseline.

    Args:
        tasks: K >= 1.
        backbone: name of a timm model, or a `Backbone`, with a block that could be skipped.
        pretrained: start from timm's weights.
        seed: of the initial weights and of the training.
        training: as for `MultiTask`.
    """

    recomputes_statistics = True
    network_class: type[PolicyNetwork] = PolicyNetwork

    def __init__(
        self,
        tasks: Sequence[Task],
        backbone: str | Backbone = "resnet34",
        *,
        pretrained: bool = False,
        seed: int = 0,
        **training: Any,
    ) -> None:
        torch.manual_seed(seed)
        backbone = load(backbone, pretrained=pretrained) if isinstance(backbone, str) else backbone
        architecture = policy_architecture(tasks, backbone)
        network = self.network_class(tasks, backbone)
        super().__init__(architecture, network, tasks, seed=seed, **{"stage": "train", **training})
        self.single_task_backbone_params = len(self.tasks) * backbone_params(backbone)


class DroppingNetwork(PolicyNetwork):
    """Hard sharing in which, while training, every task skips blocks at random."""

    survival = 0.5

    def gates(self, image: Tensor) -> Gates:
        if not self.training:
            return super().gates(image)
        length = len(self.paths.blocks)
        kept = torch.tensor([1 - (i + 1) / length * (1 - self.survival) for i in range(length)])
        runs = torch.rand(length, len(self.select)) < kept[:, None]
        scales = (1 / kept).to(image.device)
        return [
            {task: scales[i] if run else False for task, run in zip(self.select, row)}
            for i, row in enumerate(runs.tolist())
        ]


class StochasticDepth(HardSharing):
    """Hard sharing, regularised by stochastic depth (Huang et al., ECCV 2016; AdaShare's Table 5).

    In every step each task skips block l of L with probability l / L * (1 - survival). The finished network
    has all blocks. What a block adds is divided by its probability while training, in place of multiplied
    when the training is over.

    Args:
        survival: of the last block, in (0, 1].
        others: as for `HardSharing`.
    """

    net: DroppingNetwork
    network_class = DroppingNetwork

    def __init__(self, *args: Any, survival: float = 0.5, **others: Any) -> None:
        if not 0 < survival <= 1:
            raise ValueError(f"survival must be above 0 and at most 1, not {survival}.")
        super().__init__(*args, **others)
        self.net.survival = survival


class RandomPolicy(Candidates):
    """Random select-or-skip policies with a given number of skips (AdaShare's "Random #1" and "#2").

    Args:
        tasks: K >= 1.
        backbone: as for AdaShare.
        skips: how many blocks are skipped, over all tasks (Random #1), or by task (Random #2).
        like: the folder of a finished run of AdaShare that gives these numbers instead.
        per_task: whether `like` gives a number for each task, or their sum.
        samples: how many different policies, if there are so many; the paper takes 8.
        pretrained, seed, training: as for `HardSharing`.

    Raises:
        ValueError: neither `skips` nor `like`, more skips than blocks, no such run.
    """

    recomputes_statistics = True

    def __init__(
        self,
        tasks: Sequence[Task],
        backbone: str | Backbone = "resnet34",
        *,
        skips: int | Mapping[str, int] | None = None,
        like: str | Path | None = None,
        per_task: bool = True,
        samples: int = 2,
        pretrained: bool = False,
        seed: int = 0,
        **training: Any,
    ) -> None:
        torch.manual_seed(seed)
        backbone = load(backbone, pretrained=pretrained) if isinstance(backbone, str) else backbone
        names = [task.name for task in tasks]
        if samples < 1:
            raise ValueError(f"samples must be at least 1, not {samples}.")
        if like is not None:
            found = skips_of(Path(like), names)
            skips = found if per_task else sum(found.values())
        if skips is None:
            raise ValueError(
                "Say how many blocks are skipped: skips=, or like= the folder of a run of AdaShare."
            )
        generator = torch.Generator().manual_seed(seed)
        blocks = len(policy_architecture(tasks, backbone).blocks)
        candidates: list[tuple[Architecture, nn.Module]] = []
        for architecture in distinct(
            lambda: policy_architecture(tasks, backbone, draw(names, blocks, skips, generator)), samples
        ):
            torch.manual_seed(seed)
            network = PolicyNetwork(tasks, backbone.again(), architecture.select)
            candidates.append((architecture, network))
        super().__init__(candidates, tasks, seed=seed, **training)
        self.single_task_backbone_params = len(self.tasks) * backbone_params(backbone)


def draw(
    tasks: Sequence[str], blocks: int, skips: int | Mapping[str, int], generator: torch.Generator
) -> Selection:
    """A random selection with this number of skips in all, or for each task."""
    by_task = skips if isinstance(skips, Mapping) else {}
    if isinstance(skips, Mapping) and set(skips) != set(tasks):
        raise ValueError(f"skips must name the tasks {list(tasks)}, not {list(skips)}.")
    wanted = [by_task[task] for task in tasks] if by_task else [skips]
    room = blocks if by_task else blocks * len(tasks)
    if any(not isinstance(number, int) or not 0 <= number <= room for number in wanted):
        raise ValueError(f"skips must be whole numbers from 0 to {room}, not {skips}.")
    on = torch.ones(len(tasks) * blocks, dtype=torch.bool)
    rows = on.view(len(wanted), -1)
    for row, number in zip(rows, wanted):
        assert isinstance(number, int)
        row[torch.randperm(len(row), generator=generator)[:number]] = False
    return dict(zip(tasks, on.view(len(tasks), blocks).tolist()))


def skips_of(run: Path, tasks: Sequence[str]) -> dict[str, int]:
    """How many blocks each task skips in the architecture of a finished run."""
    path = run / "architecture.json"
    if not path.exists():
        raise ValueError(f"like: {path} is not there. Give the folder of a finished run of adashare.")
    architecture = Architecture.from_json(path.read_text(encoding="utf-8"))
    if not isinstance(architecture, PolicyArchitecture) or list(architecture.select) != list(tasks):
        raise ValueError(f"like: {path} holds no policy of the tasks {list(tasks)}.")
    return {task: chosen.count(False) for task, chosen in architecture.select.items()}
