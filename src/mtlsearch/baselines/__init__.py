"""What a search is compared with: networks that are trained without one."""

from mtlsearch.baselines.baseline import Baseline
from mtlsearch.baselines.policies import HardSharing, RandomPolicy, StochasticDepth
from mtlsearch.baselines.single_task import SingleTask

__all__ = ["Baseline", "HardSharing", "RandomPolicy", "SingleTask", "StochasticDepth"]
