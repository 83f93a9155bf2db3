"""How the losses of several tasks become the gradients of the weights: `balancing=` of every MultiTask.

By weights on the losses: Fixed, Uncertainty, DynamicWeightAverage. By the gradients of the tasks: ParetoMTL, and
Aggregate, for aggregators of torchjd or of yours.
"""

from mtlsearch.balancing.aggregate import Aggregate, torchjd
from mtlsearch.balancing.balancing import Balancing, Fixed, Step
from mtlsearch.balancing.dwa import DynamicWeightAverage
from mtlsearch.balancing.pareto import ParetoMTL
from mtlsearch.balancing.uncertainty import Uncertainty

__all__ = [
    "Aggregate",
    "Balancing",
    "DynamicWeightAverage",
    "Fixed",
    "ParetoMTL",
    "Step",
    "Uncertainty",
    "torchjd",
]
