"""The search space of AdaShare: one backbone whose blocks each task selects or skips, by relaxed gates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mtlsearch.architecture import Architecture
from mtlsearch.backbones import Backbone
from mtlsearch.nn.branches import Gate, Gates
from mtlsearch.nn.gates import Relaxation, concrete, initial_logits
from mtlsearch.searchers.policy import (
    PolicyArchitecture,
    PolicyNetwork,
    Predictor,
    policy_architecture,
    selected,
)
from mtlsearch.supernet import Supernet
from mtlsearch.task import Task, check_tasks


class PolicySupernet(Supernet):
    """A shared backbone with a gate for each of its L blocks and K tasks.

    The last `open` blocks are searched; those before them are run by all tasks. While training, gates are drawn
    for every pass, or for all passes within `one_draw`.

    Args:
        tasks: K >= 1.
        backbone: copied.
        relaxation: of the gates, see `mtlsearch.nn.gates`.
        init_probability, init_std: with which logits start, see `mtlsearch.nn.gates.Gates`.
        instance: a `Predictor` selects for every image.
    """

    open: Tensor
    mean: Tensor
    temperature: Tensor

    def __init__(
        self,
        tasks: Sequence[Task],
        backbone: Backbone,
        *,
        relaxation: Relaxation = concrete,
        init_probability: float = 0.5,
        init_std: float = 0.01,
        instance: bool = False,
    ) -> None:
        super().__init__()
        self.tasks = check_tasks(tasks)
        self.names = [task.name for task in self.tasks]
        self.empty = policy_architecture(self.tasks, backbone, instance=instance)
        self.network = PolicyNetwork(self.tasks, backbone, instance=instance)
        self.relaxation = relaxation
        blocks, count = len(self.empty.blocks), len(self.names)
        if instance:
            self.network.predictor = Predictor(
                blocks, count, init_probability=init_probability, init_std=init_std
            )
        self.logits = nn.ParameterList(  # one a block: a closed one has no gradient, and no decay either
            initial_logits(count, init_std=init_std, init_probability=init_probability)
            for _ in range(0 if instance else blocks)
        )
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("open", torch.tensor(blocks))
        self.register_buffer("mean", torch.full((blocks, count), init_probability))
        self._once = False
        self._logits: list[Tensor] = []  # (open, K), or (open, K, B) of each pass
        self._drawn: list[list[Tensor]] = []  # for these logits, the gates of each open block

    @property
    def blocks(self) -> int:
        """L."""
        return len(self.empty.blocks)

    def forward(
        self, image: Tensor, tasks: Sequence[str] | None = None, gates: Architecture | None = None
    ) -> dict[str, Tensor]:
        if gates is None:
            values = self._gates(image)
        else:
            chosen = PolicyArchitecture.of(gates)
            values = self.network.gates(image) if chosen.instance else selected(chosen.select)
        predictions: dict[str, Tensor] = self.network(image, tasks, values)
        return predictions

    @contextmanager
    def one_draw(self) -> Iterator[None]:
        """All passes within have the gates that the first one draws; by `instance`, each image has its own."""
        self._logits, self._drawn, self._once = [], [], True
        try:
            yield
        finally:
            self._once = False

    def _gates(self, image: Tensor) -> Gates:
        """The gates of a pass, all drawn at once: the same on every process."""
        if not self._once:
            self._logits, self._drawn = [], []
        closed = self.blocks - int(self.open)
        predictor = self.network.predictor
        if predictor is not None:
            logits = predictor(self.network.paths.backbone.normalize(image)).movedim(0, -1)[closed:]
            self._logits.append(logits)
            self._drawn.append(list(self._relaxed(logits)))
        elif not self._drawn:
            self._drawn.append([self._relaxed(logits) for logits in self.logits[closed:]])
        values: list[dict[str, Gate]] = [dict.fromkeys(self.names, True) for _ in range(closed)]
        return values + [dict(zip(self.names, gate)) for gate in self._drawn[-1]]

    def _relaxed(self, logits: Tensor) -> Tensor:
        return self.relaxation(logits, self.temperature) if self.training else logits.sigmoid()

    def open_logits(self) -> Tensor:
        """Logits of the open blocks (open, K); by `instance`, (open, K, B) of the last images seen."""
        if self.network.predictor is not None:
            return torch.cat(self._logits, dim=-1)
        logits = list(self.logits[self.blocks - int(self.open) :])
        return torch.stack(logits) if logits else self.mean.new_zeros(0, len(self.names))

    def open_probabilities(self) -> Tensor:
        """Probabilities of the open blocks (open, K), by which images are averaged where there are some."""
        p = self.open_logits().sigmoid()
        return p.mean(-1) if p.ndim == 3 else p

    def log_probability(self) -> Tensor:
        """Of the last hard gates that were drawn; by `instance`, the mean over their images."""
        logits = self.open_logits()
        if not len(logits):
            return self.mean.new_zeros(())
        draws = [torch.stack(gates) for gates in self._drawn]
        drawn = torch.cat(draws, dim=-1) if logits.ndim == 3 else draws[0]
        log_p = -nn.functional.binary_cross_entropy_with_logits(logits, drawn, reduction="none")
        return (log_p.mean(-1) if log_p.ndim == 3 else log_p).sum()

    def probabilities(self) -> Tensor:
        """With which each block is selected (L, K), closed ones with 1."""
        with torch.no_grad():
            p = torch.ones_like(self.mean)
            closed = self.blocks - int(self.open)
            if closed < self.blocks:
                searched = self.mean[closed:] if self.network.predictor else self.open_probabilities()
                p[closed:] = searched
            return p

    def arch_parameters(self) -> list[nn.Parameter]:
        predictor = self.network.predictor
        return list(self.logits) + (list(predictor.parameters()) if predictor else [])

    def derive(self) -> PolicyArchitecture:
        return self.architecture(self.probabilities() > 0.5)

    def sample(self, generator: torch.Generator) -> PolicyArchitecture:
        if self.network.predictor is not None:
            return self.derive()
        uniform = torch.rand(self.mean.shape, generator=generator)
        return self.architecture(uniform.to(self.mean.device) < self.probabilities())

    def architecture(self, on: Tensor) -> PolicyArchitecture:
        """The architecture in which tasks run these blocks, booleans (L, K)."""
        empty, p = self.empty, self.probabilities().T.tolist()
        return PolicyArchitecture(
            tasks=empty.tasks,
            backbone=empty.backbone,
            blocks=empty.blocks,
            stages=empty.stages,
            probabilities=dict(zip(self.names, p)),
            select=dict(zip(self.names, on.T.tolist())),
            instance=empty.instance,
        )

    def extract(self, architecture: Architecture) -> PolicyNetwork:
        return self.network.reduced(PolicyArchitecture.of(architecture).select)
