"""Pluggable searchers of multi-task architectures for PyTorch Lightning.

import mtlsearch as ms

tasks = [ms.tasks.segmentation("semantic", num_classes=13), ms.tasks.normals("normals")]
result = ms.search(ms.MTLNAS(tasks, backbone="resnet18"), datamodule, dir="runs/a")
result.network(image)  # {task: prediction}
"""

from mtlsearch import backbones, balancing, data, tasks
from mtlsearch.architecture import Architecture
from mtlsearch.baselines import (
    DEN,
    MTAN,
    NDDR,
    Baseline,
    CrossStitch,
    HardSharing,
    MTLNASSupernet,
    RandomPolicy,
    RandomSearch,
    SingleTask,
    Sluice,
    StochasticDepth,
    TripleNet,
)
from mtlsearch.cost import cost
from mtlsearch.multitask import MultiTask
from mtlsearch.search import Result, load, search
from mtlsearch.searcher import Searcher
from mtlsearch.searchers import MTLNAS, MTNAS, AdaShare
from mtlsearch.supernet import Supernet
from mtlsearch.task import Target, Task

__version__ = "0.1.0"

__all__ = [
    "DEN",
    "MTAN",
    "MTLNAS",
    "MTNAS",
    "NDDR",
    "AdaShare",
    "Architecture",
    "Baseline",
    "CrossStitch",
    "HardSharing",
    "MTLNASSupernet",
    "MultiTask",
    "RandomPolicy",
    "RandomSearch",
    "Result",
    "Searcher",
    "SingleTask",
    "Sluice",
    "StochasticDepth",
    "Supernet",
    "Target",
    "Task",
    "TripleNet",
    "backbones",
    "balancing",
    "cost",
    "data",
    "load",
    "search",
    "tasks",
]
