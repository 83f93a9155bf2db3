"""The figures of cells."""

import csv
import json
from itertools import combinations

import pytest
import torch

from mtlsearch import report
from mtlsearch.nn.operations import OPERATIONS
from mtlsearch.report import cells, figures
from mtlsearch.searchers import genotypes
from mtlsearch.searchers.cell_supernet import draw
from mtlsearch.searchers.cells import KINDS

HOSTILE = "<script>$x_1"
LAYOUT = {"channels": 8, "cells": 6, "reductions": [2, 4], "detection_cells": 1}


def make_cells(**owners):
    return {
        "kind": "cells",
        "version": 1,
        "tasks": {owner: None for owner in owners if owner != "backbone"},
        "layout": LAYOUT,
        "backbone": None if owners["backbone"] else {"name": "resnet18", "arguments": {}},
        "backbone_cells": owners.pop("backbone"),
        "branch_cells": owners,
    }


def drawn(axes, gid):
    return [artist for artist in [*axes.patches, *axes.texts] if artist.get_gid() == gid]


@pytest.fixture(scope="module")
def random():
    generator = torch.Generator().manual_seed(0)
    operations = torch.ones(14, len(OPERATIONS))
    operations[:, OPERATIONS.index("none")] = 0
    return [{kind: draw(operations, torch.ones(14), generator) for kind in KINDS} for _ in range(20)]


def test_every_edge_is_drawn_once_with_its_operation(random):
    figure = figures.cells(make_cells(backbone=random[0], a=random[1], b=None))
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        f"{owner}, {kind}" for owner in ("backbone", "a") for kind in KINDS
    ]
    for axes, pairs in zip(figure.axes, [random[i][kind] for i in range(2) for kind in KINDS]):
        assert len(drawn(axes, "edge")) == 8
        names = [text.get_text() for text in drawn(axes, "operation")]
        assert names == [cells.LOOKS[operation][0] for operation, _ in pairs]
        assert len(drawn(axes, "output")) == 4
        for patch, (_, source) in zip(drawn(axes, "edge"), pairs):
            half = cells.WIDE if source < 2 else cells.NARROW
            assert abs(patch.get_path().vertices[0, 0] - cells.PLACES[source]) < half


def test_an_edge_ends_in_its_node_one_from_above_and_one_from_below(random):
    for pairs in (own[kind] for own in random for kind in KINDS):
        routes = cells.routes(pairs)
        assert [(edge.operation, edge.source) for edge in routes] == [tuple(pair) for pair in pairs]
        assert [edge.node for edge in routes] == [2, 2, 3, 3, 4, 4, 5, 5]
        assert all(first.side == -second.side for first, second in zip(routes[::2], routes[1::2]))
        for one, other in combinations(routes, 2):  # none runs along another
            apart = one.side != other.side or one.level != other.level
            assert apart or min(one.node, other.node) <= max(one.source, other.source)


def test_no_two_labels_overlap(random):
    figure = figures.cells(make_cells(backbone=random[0], **{str(i): own for i, own in enumerate(random)}))
    figure.draw_without_rendering()
    for axes in figure.axes:
        labels = [text.get_bbox_patch().get_window_extent() for text in drawn(axes, "operation")]
        nodes = [patch.get_window_extent() for patch in drawn(axes, "node")]
        assert len(nodes) == 7
        assert not any(one.overlaps(other) for one, other in combinations(labels + nodes, 2))
        edges = axes.get_window_extent()
        assert all(
            edges.containsx(b.x0) and edges.containsx(b.x1) and edges.y0 < b.y0 < b.y1 < edges.y1
            for b in labels
        )


def test_crossings_are_counted_by_hand():
    up = {"operation": "skip_connect", "side": 1}
    over, low = cells.Edge(source=0, node=4, level=1, **up), cells.Edge(source=2, node=3, level=0, **up)
    through = cells.Edge(source=2, node=5, level=2, **up)
    assert cells._crossings([over, low]) == 0
    assert cells._crossings([over, low, through]) == 1
    assert cells._crossings([over._replace(side=-1), through]) == 0
    for pairs in (genotypes.PUBLISHED_BACKBONE["normal"], genotypes.PUBLISHED_DETECTION["normal"]):
        assert cells._crossings(cells.routes(pairs)) == 0


def test_operations_look_different_and_their_families_alike():
    assert list(cells.LOOKS) == list(OPERATIONS)
    assert len({(colour, line) for _, colour, line in cells.LOOKS.values()}) == len(OPERATIONS)
    colours = {name: look[1] for name, look in cells.LOOKS.items()}
    assert len(set(colours.values())) == 5
    assert colours["sep_conv_3x3"] == colours["sep_conv_5x5"] != colours["dil_conv_3x3"]


def make_rows(epochs=3):
    """Two searches, of which the first has the branch's cells and the second those of the backbone."""
    names = [
        f"arch/{owner}/{kind}/{name}"
        for owner in (HOSTILE, "backbone")
        for kind in KINDS
        for name in OPERATIONS
    ]
    rows = []
    for stage, owner in ((f"branch_{HOSTILE}", HOSTILE), ("presearch", "backbone"), ("finetune", None)):
        for epoch in range(epochs):
            row = dict.fromkeys(["stage", "epoch", "step", *names], "")
            row |= {"stage": stage, "epoch": str(epoch), "step": str(4 * epoch + 4)}
            own = [name for name in names if name.split("/")[1] == owner]
            row |= {name: str((index % 8 + epoch) / 100) for index, name in enumerate(own)}
            rows.append(row)
    return rows


@pytest.mark.parametrize("epochs", [1, 3])
def test_every_operation_has_its_line(epochs):
    figure = figures.operations(make_rows(epochs))
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        f"branch {HOSTILE.replace('_', ' ')}, normal",
        f"branch {HOSTILE.replace('_', ' ')}, reduce",
        "presearch, backbone, normal",
        "presearch, backbone, reduce",
    ]
    for axes in figure.axes:
        assert [line.get_label() for line in axes.lines] == list(OPERATIONS)
        for index, line in enumerate(axes.lines):
            assert list(line.get_xdata()) == [epoch + 1 for epoch in range(epochs)]
            assert line.get_ydata() == pytest.approx([(index + epoch) / 100 for epoch in range(epochs)])
    assert len(figure.legends[0].get_texts()) == len(OPERATIONS)


def test_cells_searched_together_have_a_row_each():
    rows = [{**row, "stage": "backbone"} for row in make_rows(1)]
    assert cells.searches(rows) == [("backbone", HOSTILE), ("backbone", "backbone")]


def write(folder, architecture, rows=()):
    (folder / "architecture.json").write_text(json.dumps(architecture))
    if rows:
        with (folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def test_the_page_of_cells(tmp_path, random):
    write(tmp_path, make_cells(backbone=random[0], **{HOSTILE: random[1]}), make_rows())
    text = report.write(tmp_path).read_text()
    assert text.count('src="data:image/png;base64,') == 2
    assert "stacks 6 cells, a node of the first has 8 channels" in text
    assert "number 3, 5" in text
    assert "<script" not in text
    assert "&lt;script" in text


def test_what_was_not_searched_is_left_out(tmp_path, random):
    write(tmp_path, make_cells(backbone=None, a=None))
    assert not figures.write(tmp_path)
    rows = [{"stage": "finetune", "epoch": "0", "step": "4", "val/loss": "1.0"}]
    write(tmp_path, make_cells(backbone=None, a=random[0]), rows)
    assert [path.stem for path in figures.write(tmp_path)] == ["cells", "curves"]
    assert "The backbone is resnet18" in report.write(tmp_path).read_text()
