"""What a search is compared with: networks that are trained without one."""

from mtlsearch.baselines.baseline import Baseline
from mtlsearch.baselines.mtan import MTAN
from mtlsearch.baselines.policies import HardSharing, RandomPolicy, StochasticDepth
from mtlsearch.baselines.random_search import RandomSearch
from mtlsearch.baselines.single_task import SingleTask
from mtlsearch.baselines.triplenet import TripleNet

__all__ = [
    "MTAN",
    "Baseline",
    "HardSharing",
    "RandomPolicy",
    "RandomSearch",
    "SingleTask",
    "StochasticDepth",
    "TripleNet",
]
