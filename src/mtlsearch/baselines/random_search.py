"""Random search over the space of any searcher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtlsearch.architecture import Architecture
from mtlsearch.backbones import Backbone, load
from mtlsearch.baselines.candidates import Candidates
from mtlsearch.searcher import Searcher
from mtlsearch.searchers import MTLNAS, MTNAS, AdaShare
from mtlsearch.searchers.calibration import Calibrated
from mtlsearch.searchers.distinct import distinct
from mtlsearch.searchers.start import FromSingleTask
from mtlsearch.supernet import Supernet
from mtlsearch.task import Task

SPACES: dict[str, Callable[..., Searcher]] = {"mtlnas": MTLNAS, "adashare": AdaShare, "mtnas": MTNAS}


class RandomSearch(Candidates):
    """Draws architectures from the uniform distribution over a search space, trains each, and takes the best.

    Li and Talwalkar, "Random Search and Reproducibility for Neural Architecture Search", UAI 2019. Every
    architecture has the same share of the budget: a stage "train_1", "train_2", ... of as many epochs. They start
    as the networks of the searcher do: in MTL-NAS's space from single-task networks, which a run trains first, in
    a stage "single_task"; else from fresh weights. The best on validation data is the result: test data play no
    part.

    Args:
        tasks: K >= 1.
        backbone: as for the searcher whose space it is; None: its default.
        pretrained: start from timm's weights.
        space: "mtlnas", "adashare", "mtnas", or a function of (tasks, backbone, seed=...) that makes a `Searcher`.
        arguments: of that searcher, as far as they say what the space is and how its networks start.
        samples: how many architectures, at least 1.
        init: trained single-task networks, for a space whose networks start from them: the module, or the folder
            of a run of them.
        single_task: whether a run starts with the stage of that name where `init` is not given.
        seed: of the draws, the initial weights and the training.
        training: as for `MultiTask`.

    Raises:
        ValueError: an unknown space, too few samples, arguments that the searcher refuses, an `init` in a space
            whose networks do not start from single-task ones.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        backbone: str | Backbone | None = None,
        *,
        pretrained: bool = False,
        space: str | Callable[..., Searcher] = "mtlnas",
        arguments: Mapping[str, Any] | None = None,
        samples: int = 4,
        init: nn.Module | str | Path | None = None,
        single_task: bool = True,
        seed: int = 0,
        **training: Any,
    ) -> None:
        if isinstance(space, str) and space not in SPACES:
            raise ValueError(f"space must be one of {', '.join(SPACES)}, or a function, not {space!r}.")
        if samples < 1:
            raise ValueError(f"samples must be at least 1, not {samples}.")
        if pretrained and backbone is None:
            raise ValueError("pretrained needs a backbone: name one.")
        torch.manual_seed(seed)
        if isinstance(backbone, str):
            backbone = load(backbone, pretrained=pretrained)
        make = SPACES[space] if isinstance(space, str) else space
        settings = dict(arguments or {})
        if space == "mtnas" and backbone is not None:  # its branches are the space
            settings = {"presearch": False, "search_backbone": False, **settings}
        searcher = make(tasks, *([backbone] if backbone is not None else []), seed=seed, **settings)
        supernet = searcher.search_space()
        joins = isinstance(searcher, FromSingleTask)
        if init is not None and not joins:
            raise ValueError(
                "init: the networks of this space do not start from single-task ones. Leave it out."
            )
        candidates = []
        for architecture in uniform(supernet, samples, seed):
            torch.manual_seed(seed)
            fresh = backbone.again() if backbone is not None else None
            network = supernet.extract(architecture) if joins else architecture.build(tasks, fresh)
            candidates.append((architecture, network))
        super().__init__(candidates, tasks, seed=seed, **training)
        if isinstance(searcher, Calibrated):
            self.begin_norms("identity" if searcher.calibrates else "standard")
        self.start_from(init, single_task and joins, training)
        self.recomputes_statistics = searcher.recomputes_statistics
        self.single_task_backbone_params = searcher.single_task_backbone_params


def uniform(space: Supernet, count: int, seed: int) -> list[Architecture]:
    """So many different architectures of a space, each as likely as any other; all of a space that has fewer."""
    with torch.no_grad():
        for parameter in space.arch_parameters():
            parameter.zero_()
    generator = torch.Generator().manual_seed(seed)
    return distinct(lambda: space.sample(generator), count)
