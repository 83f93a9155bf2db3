"""The usual tasks, each a function that returns a `Task`.

| function | label of one image | loss | metrics, the main one first |
|---|---|---|---|
| `segmentation` | class ids (H, W) | cross entropy | miou, pixel_accuracy |
| `normals` | unit vectors (3, H, W) | 1 - cosine | mean_angle, median_angle, within_11_25 (_22_5, _30) |
| `depth` | metres (1, H, W) | L1 | absolute_error, relative_error, delta_1, delta_2, delta_3 |
| `edges`, `keypoints` | values (C, H, W) | L1 | absolute_error |
| `boundaries` | 0 or 1 (1, H, W) | binary cross entropy | average_precision |
| `classification` | class id () or probabilities (classes,) | cross entropy or l2 | top1, top5 |
| `detection` | boxes (n, 4) and class ids (n,) | SSD's | map, map_50, map_50 of each class |

Angles are in degrees, depth errors in metres, the rest are fractions from 0 to 1, all taken over every
labelled entry of a data set. A task of your own is a `Task` made of these parts or others; any function that
may be a loss may be a metric: `partial(MeanError, function)` or `partial(MeanScore, function)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlsearch.task import Task
from mtlsearch.tasks.boundaries import Boundaries, boundaries
from mtlsearch.tasks.boxes import Boxes
from mtlsearch.tasks.classification import ImageLabel, classification
from mtlsearch.tasks.depth import Depth, depth
from mtlsearch.tasks.detection import Detections, detection
from mtlsearch.tasks.maps import DenseMap, edges, keypoints
from mtlsearch.tasks.metrics import Mean, MeanError, MeanScore
from mtlsearch.tasks.normals import Normals, normals
from mtlsearch.tasks.segmentation import ClassMap, segmentation

__all__ = [
    "Boundaries",
    "Boxes",
    "ClassMap",
    "DenseMap",
    "Depth",
    "Detections",
    "ImageLabel",
    "Mean",
    "MeanError",
    "MeanScore",
    "Normals",
    "boundaries",
    "classification",
    "depth",
    "detection",
    "edges",
    "from_spec",
    "keypoints",
    "normals",
    "segmentation",
]

KINDS = {
    make.__name__: make
    for make in (segmentation, normals, depth, edges, keypoints, boundaries, classification, detection)
}


def from_spec(name: str, spec: Mapping[str, Any] | None) -> Task:
    """The built-in task that `Task.spec` describes; a ValueError says what in it is wrong."""
    if not isinstance(spec, Mapping) or set(spec) != {"kind", "arguments"}:
        raise ValueError(
            f"Task {name!r} is not described by a kind and arguments: found {spec!r}. "
            "A task of your own has to be passed as an object."
        )
    kind = str(spec["kind"])
    if kind not in KINDS:
        raise ValueError(f"Task {name!r} is of an unknown kind {kind!r}: known are {', '.join(KINDS)}.")
    try:
        return KINDS[kind](name, **spec["arguments"])
    except TypeError as error:
        raise ValueError(f"Task {name!r} cannot be made from {dict(spec)}: {error}.") from error
