"""delta_m: how much better a multi-task network is than single-task ones, as one number."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

Values = Mapping[str, Mapping[str, float]]


def delta_m(
    values: Values, reference: Values, directions: Mapping[str, Mapping[str, bool]]
) -> dict[str, float]:
    """The mean relative improvement over the metrics of each task in percent (AdaShare Eq. 6), and under "all" the
    mean over tasks; more is better.

    A metric that neither side has, as that of a class without a box in the data, is left out, and so is one whose
    reference is 0, of which there is no percentage: `without_reference` names these. A task without any other
    metric is not in the result; without any such task there is no "all".

    Args:
        values: {task: {metric: number}} of a network.
        reference: of the single-task networks.
        directions: {task: {metric: whether higher is better}}: the metrics that count.

    Raises:
        ValueError: a metric that one of them lacks.
    """
    result = {}
    for task, metrics in directions.items():
        gains = []
        there = [name for name in metrics if any(name in side.get(task, ()) for side in (values, reference))]
        for metric in there or metrics:
            try:
                value, base = values[task][metric], reference[task][metric]
            except KeyError:
                raise ValueError(f"delta_m: there is no {metric!r} of task {task!r} on both sides.") from None
            if base != 0:
                gains.append((1 if metrics[metric] else -1) * (value - base) / abs(base) * 100)
        if gains:
            result[task] = fmean(gains)
    if result:
        result["all"] = fmean(list(result.values()))
    return result


def without_reference(
    reference: Values, directions: Mapping[str, Mapping[str, bool]]
) -> list[tuple[str, str]]:
    """The pairs of task and metric that `delta_m` leaves out because the reference has 0 there."""
    return [(t, m) for t, metrics in directions.items() for m in metrics if reference.get(t, {}).get(m) == 0]
