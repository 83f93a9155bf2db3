"""Cells that are known: those published with MTNAS, and plain ones made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtlsearch.searchers.cells import BACKBONE, CellsArchitecture, cells_architecture
from mtlsearch.task import Task
from mtlsearch.tasks.boxes import Boxes

SHORT = {
    "skip": "skip_connect",
    "avg": "avg_pool_3x3",
    "max": "max_pool_3x3",
    "sep3": "sep_conv_3x3",
    "sep5": "sep_conv_5x5",
    "dil3": "dil_conv_3x3",
    "dil5": "dil_conv_5x5",
}


def cell(text: str) -> list[list[Any]]:
    """[operation, input] pairs from "sep3(0) dil3(1) ..."."""
    pairs = (word.rstrip(")").split("(") for word in text.split())
    return [[SHORT[name], int(source)] for name, source in pairs]


PUBLISHED_LAYOUT = {"channels": 32, "cells": 14, "reductions": [6, 9, 12], "detection_cells": 3}
"""Of the paper's network (its authors' file)."""

PUBLISHED_BACKBONE = {
    "normal": cell("sep3(0) dil3(1) skip(0) sep3(1) sep3(1) sep3(3) sep3(0) dil5(4)"),
    "reduce": cell("avg(0) sep5(1) sep3(0) dil5(2) avg(0) dil3(1) dil3(1) dil5(3)"),
}
PUBLISHED_DETECTION = {
    "normal": cell("skip(0) sep3(1) skip(0) sep3(2) sep3(1) skip(0) sep3(0) skip(1)"),
    "reduce": cell("avg(0) max(1) max(0) skip(2) avg(0) dil5(3) skip(2) skip(3)"),
}
PUBLISHED_SEGMENTATION = {
    "normal": cell("dil3(1) sep5(0) dil3(0) skip(1) dil3(0) skip(1) dil3(0) skip(2)"),
    "reduce": cell("dil3(0) skip(1) max(2) avg(0) dil3(0) skip(2) skip(2) max(0)"),
}

HANDMADE = {
    "normal": cell("sep3(0) sep3(1) sep3(2) skip(1) sep3(3) skip(2) sep3(4) skip(3)"),
    "reduce": cell("sep3(0) sep3(1) max(1) skip(2) sep3(1) skip(2) max(0) skip(3)"),
}
"""A residual chain of separable convolutions: what a branch is where none is searched."""


def published(tasks: Sequence[Task]) -> CellsArchitecture:
    """The paper's network: its backbone, the detection branch for boxes, the segmentation branch for others."""
    cells = {
        task.name: PUBLISHED_DETECTION if isinstance(task.target, Boxes) else PUBLISHED_SEGMENTATION
        for task in tasks
    }
    return cells_architecture(tasks, {BACKBONE: PUBLISHED_BACKBONE, **cells}, PUBLISHED_LAYOUT)
