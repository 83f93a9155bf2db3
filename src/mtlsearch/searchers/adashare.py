"""AdaShare: which task should run which block of one shared backbone.

Sun, Panda, Feris and Saenko, "AdaShare: Learning What To Share For Efficient Deep Multi-Task Learning",
NeurIPS 2020. Every block that can be skipped has a select-or-skip policy for each task, learnt together with the
weights by Gumbel-softmax samples; sparsity and sharing terms keep the network small. Architectures drawn from
the policy are then trained from scratch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlsearch.architecture import Architecture
from mtlsearch.backbones import Backbone, load
from mtlsearch.cost import backbone_params
from mtlsearch.data.bilevel import Bilevel
from mtlsearch.multitask import Batch, MultiTask
from mtlsearch.namespace import pl, rank_zero_warn
from mtlsearch.nn.gates import Relaxation, bernoulli, entropy, relaxation_of
from mtlsearch.nn.gates import straight_through as hardened
from mtlsearch.nn.policies import SPARSITY, sharing, sparsity
from mtlsearch.nn.reinforce import advantage
from mtlsearch.searcher import Searcher
from mtlsearch.searchers.distinct import distinct
from mtlsearch.searchers.policy import PolicyArchitecture
from mtlsearch.searchers.policy_supernet import PolicySupernet
from mtlsearch.searchers.ranges import check_choice, check_ranges, check_temperatures
from mtlsearch.task import Task


class AdaShare(Searcher):
    """Searches select-or-skip policies, then trains architectures drawn from them.

    In a run, stage "search" trains weights and policies, each on its own part of the training data, and a stage
    "retrain_1", "retrain_2", ... trains each drawn architecture on all of it. The best on validation data is
    the result; `metrics.json` tells of all.

    Args:
        tasks: K >= 1.
        backbone: name of a timm model with blocks that can be skipped, or a `Backbone`.
        pretrained: start from timm's weights, retraining too.
        warmup: the part of the search in [0, 1) that trains weights alone, all blocks shared.
        curriculum: the part of the rest in [0, 1] over which blocks open one after another, from the last
            one; 0: all are open from the start. The paper opens one an epoch.
        alternate: update weights, then policies in every "step", or in every "epoch" in turn.
        arch_fraction: of the training data for the policies, in (0, 1).
        relaxation: "concrete" (Eq. 2), "deterministic", or a function of (logits, temperature).
        straight_through: hard gates in the forward pass, soft ones in the backward pass.
        temperature, temperature_end: of the relaxation, falling from the one to the other by the same factor
            in every step after the warm-up.
        estimator: "gumbel", or "reinforce": policy gradients (the ablation "AdaShare-RL").
        instance: a small network selects for every image (the ablation "AdaShare-Instance").
        sparsity_form: "bounded" or "log", see `sparsity`.
        sparsity_weight, sharing_weight: λ_sp and λ_sh of Eq. 5, at least 0.
        entropy_weight: on the mean entropy of a gate in nats (MTL-NAS Eq. 12), which decides the policies so
            that the search need not be followed by training: `retrain=False`.
        init_probability: in (0, 1), with which blocks are selected at first.
        samples: architectures drawn and trained; 0: the most probable one alone. The paper draws 8.
        retrain: False takes the most probable one with the weights that the search leaves, BatchNorm's
            statistics computed anew.
        training: as for `Searcher` and `MultiTask`.

    Raises:
        ValueError: a value out of range, an unknown name, a backbone without a block to skip.
    """

    net: PolicySupernet
    baseline: Tensor
    recomputes_statistics = True

    def __init__(
        self,
        tasks: Sequence[Task],
        backbone: str | Backbone = "resnet34",
        *,
        pretrained: bool = False,
        warmup: float = 0.25,
        curriculum: float = 0.5,
        alternate: str = "step",
        arch_fraction: float = 0.5,
        relaxation: str | Relaxation = "concrete",
        straight_through: bool = False,
        temperature: float = 5.0,
        temperature_end: float = 0.1,
        estimator: str = "gumbel",
        instance: bool = False,
        sparsity_form: str = "bounded",
        sparsity_weight: float = 0.01,
        sharing_weight: float = 0.005,
        entropy_weight: float = 0.0,
        init_probability: float = 0.7,
        samples: int = 2,
        retrain: bool = True,
        seed: int = 0,
        **training: Any,
    ) -> None:
        check_ranges(
            {"warmup": warmup, "curriculum": curriculum, "init_probability": init_probability}, low=0, high=1
        )
        weights = {"sparsity_weight": sparsity_weight, "sharing_weight": sharing_weight}
        check_ranges({**weights, "entropy_weight": entropy_weight, "samples": samples}, low=0)
        if warmup == 1 or init_probability in (0, 1):
            raise ValueError("warmup must be below 1 and init_probability neither 0 nor 1.")
        check_temperatures(temperature, temperature_end)
        check_choice("alternate", alternate, ("step", "epoch"))
        check_choice("estimator", estimator, ("gumbel", "reinforce"))
        check_choice("sparsity_form", sparsity_form, SPARSITY)
        torch.manual_seed(seed)
        if isinstance(backbone, str):
            backbone = load(backbone, pretrained=pretrained)
        draw = bernoulli if estimator == "reinforce" else relaxation_of(relaxation)
        supernet = PolicySupernet(
            tasks,
            backbone,
            relaxation=hardened(draw) if straight_through and estimator == "gumbel" else draw,
            init_probability=init_probability,
            instance=instance,
        )
        super().__init__(supernet, tasks, seed=seed, **{"stage": "search", **training})
        self.training_arguments = {k: v for k, v in training.items() if k not in ("arch_optimizer", "stage")}
        self.register_buffer("baseline", torch.full((), torch.nan))
        self.warmup = warmup
        self.curriculum = curriculum
        self.alternate = alternate
        self.arch_fraction = arch_fraction
        self.temperatures = (temperature, temperature_end)
        self.estimator = estimator
        self.sparsity_form = sparsity_form
        self.sparsity_weight = sparsity_weight
        self.sharing_weight = sharing_weight
        self.entropy_weight = entropy_weight
        self.single_task_backbone_params = len(self.tasks) * backbone_params(backbone)
        self.drawn = samples
        self.retrain = retrain
        self.samples = 0 if retrain else samples
        self._backbone = (backbone,)  # in a tuple, lest it count as a part of this module
        self._finalists: list[tuple[PolicyArchitecture, MultiTask]] = []

    # The search.

    def groups(self, epoch: int) -> tuple[str, ...]:
        if self._searched(self.progress(0)) < 0:
            return ("weights",)
        if self.alternate == "step":
            return ("weights", "arch")
        return ("arch",) if epoch % 2 else ("weights",)

    def _searched(self, progress: float) -> float:
        """How much of what follows the warm-up is over, negative before."""
        return (progress - self.warmup + 1e-9) / (1 - self.warmup)

    def anneal(self, progress: float) -> None:
        searched = self._searched(progress)
        start, end = self.temperatures
        self.net.temperature.fill_(start * (end / start) ** max(searched, 0.0))
        blocks = self.net.blocks
        pace = searched / self.curriculum if self.curriculum else 1.0
        self.net.open.fill_(0 if searched < 0 else min(blocks, 1 + int(blocks * pace)))

    def regularization(self, progress: float) -> dict[str, Tensor]:
        p, blocks = self.net.open_probabilities(), self.net.blocks
        decided = entropy(self.net.open_logits())
        values = {"sparsity": sparsity(p, blocks, self.sparsity_form), "sharing": sharing(p, blocks)}
        seen = {
            **values,
            "entropy": decided,
            "temperature": self.net.temperature,
            "open_blocks": self.net.open,
        }
        for name, value in seen.items():
            self.log(f"train/{name}", value.detach().float(), on_step=False, on_epoch=True, batch_size=1)
        weighted = {
            "sparsity": (self.sparsity_weight, values["sparsity"]),
            "sharing": (self.sharing_weight, values["sharing"]),
            "entropy": (self.entropy_weight, decided),
        }
        return {name: weight * value for name, (weight, value) in weighted.items() if weight}

    def terms(self, group: str, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        with self.net.one_draw():  # for all parts of the batch: the paper draws once a step
            terms = super().terms(group, batch, batch_index)
        if group == "arch" and self.estimator == "reinforce":
            terms = {name: term for name, term in terms.items() if name not in self.net.names}
            terms["policy"] = advantage(self._loss, self.baseline) * self.net.log_probability()
        return terms

    def losses(self, predictions: Any, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        terms, means = super().losses(predictions, batch)
        weights = {task.name: task.weight for task in self.tasks}
        self._loss = torch.stack([weights[name] * mean for name, mean in means.items()]).sum()
        return terms, means

    def arch_step(self, batch: Batch, batch_index: int) -> None:
        super().arch_step(batch, batch_index)
        if self.net.network.predictor is not None:
            closed = self.net.blocks - int(self.net.open)
            with torch.no_grad():
                self.net.mean[closed:].lerp_(self.net.open_probabilities(), 0.1)

    def train_data(self, datamodule: pl.LightningDataModule) -> pl.LightningDataModule:
        return Bilevel(datamodule, arch_fraction=self.arch_fraction, seed=self.seed)

    # What follows it.

    def next_stage(self, finished: MultiTask) -> MultiTask | None:
        if not self.retrain:
            return None
        if finished is self:
            self._finalists = [(chosen, self._stage(i, chosen)) for i, chosen in enumerate(self.candidates())]
        stages = [self, *(stage for _, stage in self._finalists)]
        following = stages.index(finished) + 1
        return stages[following] if following < len(stages) else None

    def carried(self, stages: Sequence[str], chosen: int) -> list[str]:
        return [self._finalists[chosen][1].stage] if self.retrain else [self.stage]

    def candidates(self) -> list[PolicyArchitecture]:
        """The architectures to train: distinct draws from the policy, or the most probable one."""
        if not self.drawn or self.net.network.predictor is not None:
            return [_warned(self.derive())]
        generator = torch.Generator().manual_seed(self.seed)
        return [_warned(sample) for sample in distinct(lambda: self.net.sample(generator), self.drawn)]

    def _stage(self, index: int, architecture: PolicyArchitecture) -> MultiTask:
        torch.manual_seed(self.seed)
        network = architecture.build(self.tasks, self._backbone[0].again())
        if self.net.network.predictor is not None:
            network.predictor = copy.deepcopy(self.net.network.predictor).requires_grad_(False)
        stage = f"retrain_{index + 1}"
        return MultiTask(network, self.tasks, seed=self.seed, stage=stage, **self.training_arguments)

    def finalists(self) -> list[tuple[Architecture, nn.Module]]:
        if not self.retrain:
            return [(_warned(self.derive()), self.network())]
        return [(architecture, stage.network()) for architecture, stage in self._finalists]

    def derive(self) -> PolicyArchitecture:
        return self.net.derive()


def _warned(architecture: PolicyArchitecture) -> PolicyArchitecture:
    """With a warning where a task runs no block."""
    for task, chosen in architecture.select.items():
        if not any(chosen):
            rank_zero_warn(
                f"Task {task!r} skips every block: its prediction comes from the stem and the shortcuts alone. "
                "A smaller sparsity_weight keeps more."
            )
    return architecture
