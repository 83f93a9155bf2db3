import json

import pytest
import torch
from torch import nn

import mtlsearch as ms
from mtlsearch.architecture import Architecture
from mtlsearch.backbones import load
from mtlsearch.nn.categorical import Categorical, concrete
from mtlsearch.nn.cells import EDGES
from mtlsearch.nn.operations import OPERATIONS
from mtlsearch.searchers.cell_supernet import CellGates, CellSupernet, draw, hard
from mtlsearch.searchers.cells import CellsNetwork, cells_architecture
from mtlsearch.searchers.genotypes import HANDMADE, published
from tiny import make_tasks

SMALL = {"channels": 4, "cells": 4, "reductions": [1, 2], "detection_cells": 1}


def all_tasks():
    room = ms.tasks.classification("room", num_classes=3)
    return [*make_tasks("semantic", "depth"), ms.tasks.detection("boxes", num_classes=2), room]


def supernet(tasks=None, searched=None, channels=4, **settings):
    torch.manual_seed(0)
    tasks = tasks or all_tasks()
    owners = ["backbone", *(task.name for task in tasks)]
    searched = searched if searched is not None else {owner: owner for owner in owners}
    fixed = {owner: HANDMADE for owner in owners if owner not in searched}
    net = CellSupernet(tasks, searched, fixed, layout={**SMALL, "channels": channels}, **settings)
    for gate in net.gates.modules():
        if isinstance(gate, CellGates):
            nn.init.normal_(gate.logits)
    for norm in net.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return net.eval()


# The gates


def test_the_entropy_of_a_gate_by_hand():
    gate = Categorical(2, 8)
    with torch.no_grad():
        gate.logits.zero_()
        gate.logits[1, 3] = 1000.0
    assert gate.entropy().item() == pytest.approx(torch.log(torch.tensor(8.0)).item() / 2)


def test_gumbel_softmax_chooses_in_proportion():
    torch.manual_seed(0)
    p = torch.tensor([0.5, 0.3, 0.2])
    drawn = concrete(p.log().expand(50_000, 3), torch.tensor(0.5))
    assert torch.allclose(drawn.sum(-1), torch.ones(50_000), atol=1e-5)
    assert torch.allclose(drawn.argmax(-1).bincount() / 50_000, p, atol=0.01)


def test_edge_weights_sum_to_one_at_every_node():
    gates = CellGates(normalize=True)
    nn.init.normal_(gates.edge_logits)
    edges = gates.edges()
    for node in range(2, 6):
        own = [i for i, (_, target) in enumerate(EDGES) if target == node]
        assert edges[own].sum().item() == pytest.approx(1)
    assert CellGates().edges() is None


def test_a_draw_takes_what_is_certain():
    operations = torch.zeros(14, 8)
    operations[:, OPERATIONS.index("dil_conv_5x5")] = 1
    edges = torch.zeros(14)
    wanted = [(0, 2), (1, 2), (1, 3), (2, 3), (0, 4), (3, 4), (2, 5), (4, 5)]
    for edge in wanted:
        edges[EDGES.index(edge)] = 1
    pairs = draw(operations, edges, torch.Generator().manual_seed(0))
    assert pairs == [["dil_conv_5x5", source] for source, _ in wanted]


def test_hard_gates_are_one_where_a_cell_has_an_operation():
    gates = hard(HANDMADE["normal"], torch.zeros(14, 8))
    assert gates.sum() == 8
    assert gates[EDGES.index((2, 3)), OPERATIONS.index("sep_conv_3x3")] == 1  # node 3: sep3(2) skip(1)
    assert gates[EDGES.index((1, 3)), OPERATIONS.index("skip_connect")] == 1


# The network


@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
@pytest.mark.parametrize(
    "searched", [None, {"backbone": "backbone"}, {"backbone": "depth", "depth": "depth"}]
)
def test_a_derived_network_is_the_supernet_under_hard_gates(size, searched):
    net = supernet(searched=searched)
    image = torch.rand(2, 3, *size)
    for architecture in (net.derive(), net.sample(torch.Generator().manual_seed(1))):
        network = net.extract(architecture).eval()
        expected = net(image, gates=architecture)
        for name, prediction in network(image).items():
            assert torch.allclose(prediction, expected[name], atol=1e-5), name
        rebuilt = Architecture.from_json(architecture.to_json()).build(net.tasks).eval()
        rebuilt.load_state_dict(network.state_dict())
        for name, prediction in rebuilt(image).items():
            assert torch.allclose(prediction, expected[name], atol=1e-5), name


def test_owners_that_share_gates_search_one_pair_of_cells():
    task = make_tasks("semantic")
    net = supernet(task, {"backbone": "semantic", "semantic": "semantic"})
    assert len(net.arch_parameters()) == 2  # normal and reduce
    architecture = net.derive()
    assert architecture.backbone_cells == architecture.branch_cells["semantic"]


def test_partial_channels_pass_a_part_through_the_operations_and_say_that_derived_weights_differ():
    net = supernet(channels=8, partial=2)
    assert not net.exact
    whole = supernet(channels=8)
    assert sum(p.numel() for p in net.weights()) < sum(p.numel() for p in whole.weights())
    predictions = net.extract(net.derive()).eval()(torch.rand(1, 3, 32, 32))
    assert predictions["semantic"].shape == (1, 4, 32, 32)


def test_every_gate_of_a_search_gets_a_gradient():
    tasks = [*make_tasks("semantic"), ms.tasks.detection("boxes", num_classes=2)]
    net = supernet(tasks).train()
    sum(prediction.square().sum() for prediction in net(torch.rand(2, 3, 64, 64)).values()).backward()
    # A dense branch has normal cells only, and detection on its path a reduction cell.
    silent = [name for name, p in net.gates.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert sorted(silent) == ["boxes.normal.logits", "semantic.reduce.logits"]


def counted(net, image, tasks):
    """Calls of the cells of the top-down paths, and of detection's cells."""
    calls = []
    for name, module in net.named_modules():
        if name.startswith(("network.paths.", "network.branches.")) and hasattr(module, "sources"):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    net(image, tasks)
    return calls


def test_a_task_alone_computes_what_it_needs():
    image = torch.rand(1, 3, 32, 32)
    levels = len(SMALL["reductions"]) + 1
    calls = counted(supernet(searched={}), image, ["boxes"])
    # Detection stands on the first dense task's path, and does not look at its finest level.
    assert [name for name in calls if ".paths." in name] == [
        f"network.paths.semantic.cells.{i}" for i in range(levels - 1)
    ]
    calls = counted(supernet(searched={}), image, ["depth"])
    assert calls == [f"network.paths.depth.cells.{i}" for i in range(levels)]
    calls = counted(supernet(searched={}), image, ["room"])
    assert calls == ["network.branches.room"]


def test_detection_has_a_path_of_its_own_where_no_dense_task_has_one():
    alone = supernet([ms.tasks.detection("boxes", num_classes=2)], {})
    assert list(alone.network.paths) == ["boxes"]
    assert len(alone.network.paths["boxes"].cells) == len(SMALL["reductions"])
    assert all(p.grad_fn is None for p in alone.parameters())
    alone(torch.rand(1, 3, 64, 64))["boxes"].sum().backward()
    assert all(p.grad is not None for p in alone.network.paths.parameters())


def test_a_timm_backbone_may_stand_in_place_of_a_searched_one():
    tasks = all_tasks()[:3]
    torch.manual_seed(0)
    cells = {task.name: HANDMADE for task in tasks}
    backbone = load("test_resnet")
    architecture = cells_architecture(tasks, cells, SMALL, backbone.spec)
    network = architecture.build(tasks).eval()
    sizes = {
        name: p.shape[-2:] for name, p in network(torch.rand(1, 3, 64, 48), ["semantic", "depth"]).items()
    }
    assert set(sizes.values()) == {(64, 48)}
    with pytest.raises(ValueError, match="has a backbone of cells"):
        cells_architecture(tasks, {**cells, "backbone": HANDMADE}, SMALL).build(tasks, backbone)


# The published network


def test_the_published_layout():
    tasks = [
        ms.tasks.detection("boxes", num_classes=4, head={"name": "ssd", "norm": True}),
        ms.tasks.segmentation("semantic", num_classes=16, head="pointwise"),
    ]
    network = published(tasks).build(tasks).eval()
    assert sum(p.numel() for p in network.parameters()) == 10_082_864  # as the README says
    assert network.trunk.channels == [32, 128, 256, 512, 1024]
    assert network.trunk.strides == [2, 4, 8, 16, 32]
    below = network.branches["boxes"]
    assert below.channels == [1024, 512, 512]
    seen = []
    network.heads["boxes"].register_forward_pre_hook(
        lambda _, args: seen.extend(f.shape[1:] for f in args[0])
    )
    with torch.no_grad():
        predictions = network(torch.rand(1, 3, 320, 512))
    assert predictions["semantic"].shape == (1, 16, 320, 512)
    strides = [(128, 4), (256, 8), (512, 16), (1024, 32), (1024, 64)]
    assert [tuple(s) for s in seen[:5]] == [(c, 320 // s, 512 // s) for c, s in strides]
    assert [tuple(s) for s in seen[5:]] == [(512, 3, 6), (512, 1, 4)]


# Bad input


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("layout", {"channels": 4}, "layout: .*missing"),
        ("layout", {**SMALL, "channels": 6}, "multiple of 4, not 6"),
        ("layout", {**SMALL, "reductions": [3]}, r"before the last \(3\), not \[3\]"),
        ("layout", {**SMALL, "cells": "many"}, "cells must be a whole number from 1 up, not 'many'"),
        ("backbone_cells", {"normal": HANDMADE["normal"]}, "backbone_cells must have 'normal' and 'reduce'"),
        ("branch_cells", {"other": HANDMADE}, r"branch_cells must name the tasks \['semantic'\]"),
        ("backbone", "resnet18", "backbone must be null or have a name"),
    ],
)
def test_a_wrong_field_is_named(field, value, message):
    tasks = make_tasks("semantic")
    good = json.loads(
        cells_architecture(tasks, {"backbone": HANDMADE, "semantic": HANDMADE}, SMALL).to_json()
    )
    Architecture.from_json(json.dumps(good))
    with pytest.raises(ValueError, match=message):
        Architecture.from_json(json.dumps({**good, field: value}))


def test_a_wrong_pair_is_named():
    tasks = make_tasks("semantic")
    wrong = {**HANDMADE, "reduce": [["conv_7x7", 0], *HANDMADE["reduce"][1:]]}
    with pytest.raises(ValueError, match=r"branch_cells of 'semantic', reduce: .*'conv_7x7'"):
        cells_architecture(tasks, {"backbone": HANDMADE, "semantic": wrong}, SMALL)


def test_too_small_an_image_says_so():
    tasks = [ms.tasks.detection("boxes", num_classes=2)]
    cells = {"backbone": HANDMADE, "boxes": HANDMADE}
    network = cells_architecture(tasks, cells, {**SMALL, "detection_cells": 2}).build(tasks).eval()
    with pytest.raises(ValueError, match="too small for an unpadded"):
        network(torch.rand(1, 3, 32, 32))


def test_levels_have_channels_that_branches_can_divide():
    class Odd(nn.Module):
        def forward(self, image):
            return [image[:, :3, ::2, ::2]]

    with pytest.raises(ValueError, match="multiples of 4: one has 3"):
        CellsNetwork(
            make_tasks("semantic"),
            lambda *_, **__: nn.Identity(),
            ms.backbones.from_module(Odd(), []),
            **SMALL,
        )
