"""Pareto MTL: networks that trade the tasks' losses off in a chosen way.

Lin, Zhen, Li, Zhang and Kwong, "Pareto Multi-Task Learning", NeurIPS 2019. Preference vectors cut the space of
losses into sectors; a training first finds the sector of its preference and then descends on all losses within it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mtlsearch.balancing.balancing import Step
from mtlsearch.balancing.gradients import Gradients, Row


class ParetoMTL(Gradients):
    """Minimises the losses within the sector of one preference vector.

    A preference is a direction of the vector of losses, `Task.weight` included: (1, 0) allows the first task a loss
    and the second none. Its sector holds the losses whose inner product with it is larger than with any other
    preference. Until they are there for the first time, a step goes where all constraints fall that are violated;
    from then on, where all losses fall and the violated constraints with them. Either is the shortest convex
    combination of those gradients, and so a weighted sum of the tasks'. The factors act on heads and on shared
    parameters alike, and one may be negative. Their absolute values add up to the number of tasks, as in the
    authors' code. A task without a label in the batch counts with its last loss. Losses must be positive.

    Args:
        preference: which of the vectors, from 0; or a vector beside them, one number >= 0 a task in their order;
            None: the same for all tasks.
        preferences: how many vectors there are between two tasks, these included: for two tasks they stand at equal
            angles, for K at all mixtures in as many steps. The authors take 5.
        initial: the share of the training in [0, 1] after which the search for the sector is given up; the authors
            take a fifth in their example.

    Raises:
        ValueError: a value out of range, another number of entries than tasks.
    """

    losses: Tensor
    found: Tensor

    def __init__(
        self,
        preference: int | Sequence[float] | None = None,
        *,
        preferences: int = 5,
        initial: float = 0.2,
    ) -> None:
        super().__init__()
        if preferences < 2:
            raise ValueError(f"preferences must be at least 2, not {preferences}.")
        if not 0 <= initial <= 1:
            raise ValueError(f"initial must be in [0, 1], not {initial}.")
        self.preference = preference
        self.preferences = preferences
        self.initial = initial

    def begin(self) -> None:
        super().begin()
        vectors, chosen = self._vectors()
        self.constraints = np.delete(vectors, chosen, axis=0) - vectors[chosen]
        self.register_buffer("losses", torch.full((len(self.names),), torch.nan))
        self.register_buffer("found", torch.zeros((), dtype=torch.bool))

    def _vectors(self) -> tuple[np.ndarray, int]:
        """The preference vectors of length 1, and the number of the chosen one."""
        tasks = len(self.names)
        vectors = spread(tasks, self.preferences)
        if isinstance(self.preference, int):
            if not 0 <= self.preference < len(vectors):
                raise ValueError(
                    f"preference must be from 0 to {len(vectors) - 1} for {tasks} tasks and preferences="
                    f"{self.preferences}, or a vector, not {self.preference}."
                )
            return vectors, self.preference
        own = np.array([1.0] * tasks if self.preference is None else list(self.preference), dtype=np.float64)
        if own.shape != (tasks,) or not (own >= 0).all() or not 0 < own.sum() < np.inf:
            raise ValueError(
                f"preference must be a vector of one number >= 0 for each of {', '.join(self.names)}, not all 0, "
                f"and not {self.preference!r}."
            )
        own /= np.linalg.norm(own)
        others = [vector for vector in vectors if not np.allclose(vector, own)]
        return np.array([own, *others]), 0

    def combine(
        self, rows: Mapping[str, Row], values: Mapping[str, Tensor], step: Step
    ) -> tuple[Row, dict[str, Tensor]]:
        here = [self.names.index(name) for name in rows]
        for i, name in zip(here, rows):
            self.losses[i] = values[name]
        gram = gramian(list(rows.values())).cpu().numpy()
        losses = self.losses.double().cpu().numpy()
        factors = np.ones(len(rows))
        if not np.isnan(losses).any():
            violated = self.constraints[self.constraints @ losses > 0][:, here]
            if not len(violated) or step.progress >= self.initial:
                self.found.fill_(True)
            descend = np.eye(len(rows)) if self.found else np.zeros((0, len(rows)))
            factors = direction(gram, np.concatenate([descend, violated]))
        gradient: Row = [None] * len(step.parameters)
        for factor, row in zip(factors.tolist(), rows.values()):
            gradient = [
                total if g is None else factor * g if total is None else total + factor * g
                for total, g in zip(gradient, row)
            ]
        return gradient, dict(zip(rows, torch.from_numpy(factors).float().to(self.losses.device)))


def spread(tasks: int, preferences: int) -> np.ndarray:
    """(N, K): vectors of length 1 that divide the space between the axes, the one of the first task first."""
    steps = preferences - 1
    mixtures = [m for m in itertools.product(range(steps, -1, -1), repeat=tasks) if sum(m) == steps]
    vectors = np.sin(np.array(mixtures) * (math.pi / 2 / steps))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def direction(gram: np.ndarray, combinations: np.ndarray) -> np.ndarray:
    """(K,): factors on K gradients, of a step that reduces all of some combinations of the losses; 0 if none does.

    Args:
        gram: (K, K), the inner products of the gradients.
        combinations: (M, K), factors on the losses.
    """
    products = combinations @ gram @ combinations.T
    weights = min_norm(products)
    if weights @ products @ weights <= 1e-8 * products.diagonal().max():
        return np.zeros(len(gram))
    factors = weights @ combinations
    return np.asarray(factors * (len(gram) / np.abs(factors).sum()))


def min_norm(gram: np.ndarray, *, tolerance: float = 1e-10, iterations: int = 10000) -> np.ndarray:
    """(M,): weights >= 0 with sum 1 of the shortest convex combination of M vectors with these inner products.

    Frank and Wolfe's method with pairwise steps, which move weight from the worst vector that has any to the best.
    With two vectors one step is exact.
    """
    count = len(gram)
    weights = np.full(count, 1 / count)
    for _ in range(iterations):
        products = gram @ weights
        best = int(products.argmin())
        worst = int(np.where(weights > 0, products, -np.inf).argmax())
        gain = products[worst] - products[best]
        if gain <= tolerance * gram.diagonal().max():
            break
        curvature = gram[best, best] + gram[worst, worst] - 2 * gram[best, worst]
        move = min(gain / curvature, weights[worst]) if curvature > 0 else weights[worst]
        weights[best] += move
        weights[worst] -= move
    return weights


def gramian(rows: Sequence[Row]) -> Tensor:
    """(K, K): the inner products of K gradients."""
    found = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for parts in zip(*rows):
        there = [part for part in parts if part is not None]
        if there:
            block = torch.stack([torch.zeros_like(there[0]) if g is None else g for g in parts]).flatten(1)
            found = found.to(block.device) + (block @ block.T).double()
    return found
