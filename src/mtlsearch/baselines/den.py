"""DEN: a policy network selects for every task how many channels of each block it runs.

Ahn, Kim and Oh, "Deep Elastic Networks with Model Selection for Multi-Task Learning", ICCV 2019. Taken from the
paper and the authors' files: an estimator, the backbone, in each of whose residual blocks the hidden channels are
nested levels, 0, 1/4, 1/2 and all of them; a selector, a network that gives a distribution over the levels of every
block; a part of the training in which the estimator learns alone, at random levels in a quarter of the cases; then
both in turn, the estimator under the selector's most probable levels, the selector by policy gradients on levels
drawn from it, mixed with random ones that become fewer. The reward is the negative loss and (1 - density^2) / rho,
density being the share of channels in use, rho = 10.

Adapted, as AdaShare compares with it: one selection a task and not an image, so the selector reads the task and not
an image; every task's reward is its own loss, beside a running mean of it, which the authors have not; a draw for
each step and not for each image; both in turn in every step and not in long phases; on data of their own. A block
at level 0 is not computed, and each path has running statistics of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlsearch.architecture import Architecture
from mtlsearch.backbones import Backbone, load
from mtlsearch.baselines.elastic import (
    ElasticArchitecture,
    ElasticNetwork,
    Kept,
    elastic_architecture,
    widths_of,
)
from mtlsearch.cost import backbone_params
from mtlsearch.data.bilevel import Bilevel
from mtlsearch.multitask import Batch, MultiTask
from mtlsearch.namespace import pl
from mtlsearch.nn.reinforce import advantage
from mtlsearch.searcher import Searcher
from mtlsearch.searchers.ranges import check_ranges
from mtlsearch.supernet import Supernet
from mtlsearch.task import Task, check_tasks

RANDOM = 0.25
"""The part of the estimator's own steps at random levels."""


class Selector(nn.Module):
    """The policy network: logits of each block's levels for every task, from a code of the task that is learnt too.

    Args:
        tasks, blocks, levels: how many, K, L and N.
        width: of the codes and of the hidden layer.
        init_probability: in (0, 1), of the highest level at first.
    """

    def __init__(
        self, tasks: int, blocks: int, levels: int, *, width: int = 16, init_probability: float = 0.5
    ) -> None:
        super().__init__()
        self.shape = (tasks, blocks, levels)
        self.task_codes = nn.Parameter(torch.randn(tasks, width))
        self.hidden_weight = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.hidden_offset = nn.Parameter(torch.zeros(width))
        self.level_weight = nn.Parameter(torch.randn(blocks * levels, width) * 0.01)
        start = torch.full((blocks, levels), (1 - init_probability) / (levels - 1))
        start[:, -1] = init_probability
        self.level_offset = nn.Parameter(start.log().flatten())

    def forward(self) -> Tensor:
        """Logits (K, L, N)."""
        hidden = F.linear(self.task_codes, self.hidden_weight, self.hidden_offset).relu()
        return F.linear(hidden, self.level_weight, self.level_offset).view(self.shape)


class ElasticSupernet(Supernet):
    """The estimator and the selector.

    While training, tasks run the levels of the last `draw`; in evaluation the most probable ones.

    Args:
        tasks: K >= 1.
        backbone: copied.
        levels: into how many nested parts the hidden channels of a block are divided, each half of the next.
        init_probability: as for `Selector`.
    """

    exploration: Tensor

    def __init__(
        self, tasks: Sequence[Task], backbone: Backbone, *, levels: int = 3, init_probability: float = 0.5
    ) -> None:
        super().__init__()
        self.tasks = check_tasks(tasks)
        self.names = [task.name for task in self.tasks]
        self.whole = elastic_architecture(self.tasks, backbone)
        self.network = ElasticNetwork(self.tasks, backbone)
        self.choices = [
            [0, *(max(channels >> (levels - i), 1) for i in range(1, levels + 1))]
            for channels in self.whole.channels
        ]
        self.selector = Selector(
            len(self.names), len(self.choices), levels + 1, init_probability=init_probability
        )
        self.register_buffer("exploration", torch.zeros(()))
        self.drawn: Tensor | None = None

    def forward(
        self, image: Tensor, tasks: Sequence[str] | None = None, gates: Architecture | None = None
    ) -> dict[str, Tensor]:
        if gates is not None:
            kept: Kept = ElasticArchitecture.of(gates).kept
        else:
            kept = self.kept(self.likeliest() if self.drawn is None or not self.training else self.drawn)
        predictions: dict[str, Tensor] = self.network(image, tasks, widths_of(kept))
        return predictions

    def probabilities(self) -> Tensor:
        """Of each level for every task and block (K, L, N), without exploration."""
        logits: Tensor = self.selector()
        return logits.softmax(-1)

    def likeliest(self) -> Tensor:
        """The most probable levels (K, L); of equal ones the lowest."""
        return self.probabilities().detach().cpu().argmax(-1)

    def behaviour(self) -> Tensor:
        """The probabilities with which levels are drawn: the policy's, mixed with equal ones to explore."""
        p = self.probabilities()
        return p.lerp(torch.full_like(p, 1 / p.shape[-1]), self.exploration)

    def draw(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Levels (K, L) drawn with these probabilities (K, L, N), on the CPU: the same on every process."""
        uniform = torch.rand(*p.shape[:-1], 1, generator=generator)
        levels: Tensor = (uniform > p.detach().cpu().cumsum(-1)[..., :-1]).sum(-1)
        return levels

    def log_probability(self, drawn: Tensor) -> Tensor:
        """Of every task's draw of levels (K, L), with exploration: (K,)."""
        chosen = self.behaviour().gather(-1, drawn.to(self.exploration.device)[..., None])
        return chosen.clamp(min=1e-12).log().sum(dim=(1, 2))

    def density(self, drawn: Tensor) -> Tensor:
        """The share of the hidden channels that every task runs, the mean over the blocks: (K,)."""
        shares = torch.tensor([[n / own[-1] for n in own] for own in self.choices])
        return shares.expand(len(drawn), -1, -1).gather(-1, drawn[..., None]).mean(dim=(1, 2))

    def kept(self, drawn: Tensor) -> dict[str, list[int]]:
        """The channels that levels (K, L) stand for."""
        return {
            name: [own[level] for own, level in zip(self.choices, row)]
            for name, row in zip(self.names, drawn.tolist())
        }

    def arch_parameters(self) -> list[nn.Parameter]:
        return list(self.selector.parameters())

    def derive(self) -> ElasticArchitecture:
        return self.architecture(self.likeliest())

    def sample(self, generator: torch.Generator) -> ElasticArchitecture:
        return self.architecture(self.draw(self.probabilities(), generator))

    def architecture(self, drawn: Tensor) -> ElasticArchitecture:
        """The architecture in which tasks run these levels (K, L)."""
        whole = self.whole
        return ElasticArchitecture(
            whole.tasks, whole.backbone, whole.blocks, whole.channels, self.kept(drawn)
        )

    def extract(self, architecture: Architecture) -> ElasticNetwork:
        return self.network.reduced(ElasticArchitecture.of(architecture).kept)


class DEN(Searcher):
    """A backbone with a selection of channels for every task, by a policy network; see `mtlsearch.baselines.den`.

    Args:
        tasks: K >= 1.
        backbone: name of a timm model, or a `Backbone`, with residual blocks in which nothing but BatchNorm and
            depthwise convolutions stands between two layers: ResNets, ConvNeXt, MobileNetV2, ViTs.
        pretrained: start from timm's weights.
        levels: into how many nested parts the hidden channels of a block are divided, each half of the next.
        warmup: the part of the training in [0, 1) in which the estimator learns alone.
        cost_weight: on the squared share of channels in use, at least 0: the paper's 1 / rho.
        exploration: in [0, 1], the part of levels drawn at random when the selector begins; it falls to 0.
        init_probability: in (0, 1), with which all channels of a block are selected at first.
        arch_fraction: of the training data for the selector, in (0, 1).
        training: as for `Searcher` and `MultiTask`.

    Raises:
        ValueError: a value out of range, a backbone without such a block.
    """

    net: ElasticSupernet
    means: Tensor
    recomputes_statistics = True

    def __init__(
        self,
        tasks: Sequence[Task],
        backbone: str | Backbone = "resnet34",
        *,
        pretrained: bool = False,
        levels: int = 3,
        warmup: float = 0.5,
        cost_weight: float = 0.1,
        exploration: float = 1.0,
        init_probability: float = 0.5,
        arch_fraction: float = 0.2,
        seed: int = 0,
        **training: Any,
    ) -> None:
        check_ranges(
            {"warmup": warmup, "exploration": exploration, "init_probability": init_probability},
            low=0,
            high=1,
        )
        check_ranges({"levels": levels}, low=1)
        check_ranges({"cost_weight": cost_weight}, low=0)
        if warmup == 1 or init_probability in (0, 1):
            raise ValueError("warmup must be below 1 and init_probability neither 0 nor 1.")
        torch.manual_seed(seed)
        backbone = load(backbone, pretrained=pretrained) if isinstance(backbone, str) else backbone
        supernet = ElasticSupernet(tasks, backbone, levels=levels, init_probability=init_probability)
        super().__init__(supernet, tasks, seed=seed, **{"stage": "search", **training})
        self.register_buffer("means", torch.full((len(self.tasks),), torch.nan))
        self.warmup = warmup
        self.cost_weight = cost_weight
        self.exploration = exploration
        self.arch_fraction = arch_fraction
        self.single_task_backbone_params = len(self.tasks) * backbone_params(backbone)

    def groups(self, epoch: int) -> tuple[str, ...]:
        return ("weights",) if self._searched(self.progress(0)) < 0 else ("weights", "arch")

    def _searched(self, progress: float) -> float:
        """How much of what follows the warm-up is over, negative before."""
        return (progress - self.warmup + 1e-9) / (1 - self.warmup)

    def anneal(self, progress: float) -> None:
        self.net.exploration.fill_(self.exploration * (1 - max(self._searched(progress), 0.0)))

    def terms(self, group: str, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        drawn = self.net.drawn = self._levels(group)
        try:
            terms = super().terms(group, batch, batch_index)
        finally:
            self.net.drawn = None
        if group == "weights":
            return terms
        density = self.net.density(drawn).to(self.device)
        seen = [i for i, name in enumerate(self.net.names) if name in self._values]
        losses = torch.stack([self._values[self.net.names[i]] for i in seen]) if seen else density[:0]
        means = self.means[seen]
        above = advantage(losses + self.cost_weight * density[seen].square(), means)
        self.means[seen] = means
        self.log("train/density", density.mean(), on_step=False, on_epoch=True, batch_size=1)
        return {"policy": (above * self.net.log_probability(drawn)[seen]).sum()}

    def _levels(self, group: str) -> Tensor:
        """The levels (K, L) of a step: for the selector's own a draw of it; for the estimator's the likeliest, and
        in the warm-up all channels or random ones."""
        if group == "arch":
            return self.net.draw(self.net.behaviour())
        if self._searched(self.progress(0)) >= 0:
            return self.net.likeliest()
        equal = torch.ones(self.net.selector.shape)
        drawn = self.net.draw(equal / equal.shape[-1])
        return drawn if torch.rand(()) < RANDOM else torch.full_like(drawn, equal.shape[-1] - 1)

    def train_data(self, datamodule: pl.LightningDataModule) -> pl.LightningDataModule:
        return Bilevel(datamodule, arch_fraction=self.arch_fraction, seed=self.seed)

    def next_stage(self, finished: MultiTask) -> MultiTask | None:
        return None
