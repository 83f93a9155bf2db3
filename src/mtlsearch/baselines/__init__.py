"""What a search is compared with: networks that are trained without one."""

from mtlsearch.baselines.baseline import Baseline
from mtlsearch.baselines.cross_stitch import CrossStitch
from mtlsearch.baselines.den import DEN
from mtlsearch.baselines.mtan import MTAN
from mtlsearch.baselines.nddr import NDDR, MTLNASSupernet
from mtlsearch.baselines.policies import HardSharing, RandomPolicy, StochasticDepth
from mtlsearch.baselines.random_search import RandomSearch
from mtlsearch.baselines.single_task import SingleTask
from mtlsearch.baselines.sluice import Sluice
from mtlsearch.baselines.triplenet import TripleNet

__all__ = [
    "DEN",
    "MTAN",
    "NDDR",
    "Baseline",
    "CrossStitch",
    "HardSharing",
    "MTLNASSupernet",
    "RandomPolicy",
    "RandomSearch",
    "SingleTask",
    "Sluice",
    "StochasticDepth",
    "TripleNet",
]
