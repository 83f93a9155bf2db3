"""AdaShare's terms on the probabilities of select-or-skip policies."""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

SPARSITY = ("bounded", "log")


def sparsity(probabilities: Tensor, blocks: int, form: str = "bounded") -> Tensor:
    """A pull on every open block and task towards "skip".

    Args:
        probabilities: of being selected, (open, K).
        blocks: L, closed ones too.
        form: "bounded" is the authors' code, the mean over blocks of -log(1 - α), summed over tasks: its pull
            fades as a block goes off. "log" is Eq. 3 as the paper writes it, the sum of log α: it pulls a
            block that is off as hard as ever and has no lower bound, so that policies tend to skip all.
    """
    if form == "log":
        return probabilities.clamp(min=1e-12).log().sum()
    return -torch.log1p(-probabilities.clamp(max=1 - 1e-6)).sum() / blocks


def sharing(probabilities: Tensor, blocks: int) -> Tensor:
    """The distance between tasks' policies (Eq. 4), over ordered pairs of tasks; block l of L weighs (L - l) / L.

    Args:
        probabilities: of the last blocks being selected, (open, K).
        blocks: L.
    """
    count, tasks = probabilities.shape
    number = torch.arange(blocks - count + 1, blocks + 1, device=probabilities.device)
    weights = (blocks - number) / blocks
    distances = [
        (weights * (probabilities[:, a] - probabilities[:, b]).abs()).sum()
        for a, b in permutations(range(tasks), 2)
    ]
    return torch.stack(distances).sum() if distances else probabilities.new_zeros(())
