import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mtlsearch as ms
from mtlsearch.nn.paths import BranchNorm, Paths, skippable
from mtlsearch.nn.statistics import recompute_statistics
from plain_paths import PlainPaths, own_name

TASKS = ["a", "b", "c"]
NAMES = ["test_resnet", "test_convnext", "test_vit", "mobilenetv2_035"]


@pytest.fixture(scope="module")
def backbones():
    torch.manual_seed(0)
    sizes = {"test_vit": {"size": 32}}
    made = {name: ms.backbones.load(name, **sizes.get(name, {})) for name in NAMES}
    for backbone in made.values():
        for module in backbone.modules():  # a block whose last norm starts at 0 would hide what it does
            if isinstance(module, _BatchNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
    return made


def both(backbone):
    ours, plain = Paths(copy.deepcopy(backbone)).double(), PlainPaths(backbone).double()
    return ours, plain


def image(size=32, count=3):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.double)


def soft(length, opened, tasks=TASKS):
    """Gates of the last blocks, all tasks running those before."""
    generator = torch.Generator().manual_seed(2)
    values = torch.rand(opened, len(tasks), generator=generator, dtype=torch.double).requires_grad_()
    closed = [dict.fromkeys(tasks, True)] * (length - opened)
    return values, closed + [dict(zip(tasks, row)) for row in values]


def hard(length, tasks=TASKS):
    chosen = torch.rand(length, len(tasks), generator=torch.Generator().manual_seed(3)) < 0.5
    return [dict(zip(tasks, row)) for row in chosen.tolist()]


def flat(pyramids):
    return [level for task in TASKS if task in pyramids for level in pyramids[task]]


def assert_close(ours, theirs, tolerance=1e-9):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def buffers(module):
    return {own_name(n): b for n, b in module.named_buffers() if "running" in n}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("opened", [0, 1, None], ids=["closed", "one open", "all open"])
def test_soft_gates_are_the_plain_formulation(backbones, name, opened):
    ours, plain = both(backbones[name])
    length = len(ours.blocks)
    values, gates = soft(length, length if opened is None else opened)
    a, b = flat(ours(image(), TASKS, gates)), flat(plain(image(), TASKS, gates))
    assert_close(a, b)
    wanted = [dict(module.named_parameters()) for module in (ours, plain)]
    mine = {own_name(n): p for n, p in wanted[0].items()}
    theirs = {own_name(n): p for n, p in wanted[1].items()}
    assert mine.keys() == theirs.keys()
    names = list(theirs)
    grads = []
    for outputs, parameters in ((a, mine), (b, theirs)):
        leaves = [parameters[n] for n in names] + ([values] if len(values) else [])
        loss = torch.stack([(out * out.detach().sin()).mean() for out in outputs]).sum()
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        grads.append([torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves)])
    assert_close(*grads)
    mine, theirs = buffers(ours), buffers(plain)
    assert mine.keys() == theirs.keys()
    assert_close([mine[n] for n in theirs], list(theirs.values()))


@pytest.mark.parametrize("name", NAMES)
def test_hard_gates_are_the_plain_formulation(backbones, name):
    ours, plain = both(backbones[name])
    gates = hard(len(ours.blocks))
    assert_close(flat(ours(image(), TASKS, gates)), flat(plain(image(), TASKS, gates)))
    ours.eval()
    together = ours(image(), TASKS, gates)
    for task in TASKS:
        assert_close(ours(image(), [task], gates)[task], together[task])


def test_running_statistics_take_the_tasks_that_run_a_block_in_order(backbones):
    backbone = backbones["test_resnet"]
    ours, _ = both(backbone)
    gates = hard(len(ours.blocks))
    single = Paths(copy.deepcopy(backbone)).double()
    ours(image(), TASKS, gates)
    for task in TASKS:  # one after another, skipped blocks not run
        single(image(), [task], gates)
    assert_close(list(buffers(ours).values()), list(buffers(single).values()))


def count_calls(paths):
    """How many images pass each block, filled by every forward pass."""
    rows = {}
    for index, path in enumerate(paths.blocks):
        block = paths.block(index).block
        block.register_forward_pre_hook(lambda _, inputs, path=path: rows.update({path: len(inputs[0])}))
    return rows


def test_shared_blocks_run_once_and_skipped_ones_never(backbones):
    paths = Paths(copy.deepcopy(backbones["test_resnet"])).eval()
    rows = count_calls(paths)
    first, second, third, *rest = paths.blocks
    gates = [
        {"a": True, "b": True, "c": True},
        {"a": False, "b": False, "c": False},
        {"a": True, "b": False, "c": True},  # here b parts
        *({"a": True, "b": True, "c": True} for _ in rest),
    ]
    paths(torch.rand(4, 3, 32, 32), TASKS, gates)
    assert rows == {first: 4, third: 4, **dict.fromkeys(rest, 8)}
    assert second not in rows


def test_gates_of_images_run_a_block_for_those_that_select_it(backbones):
    paths = Paths(copy.deepcopy(backbones["test_resnet"])).eval()
    rows = count_calls(paths)
    on = torch.rand(len(paths.blocks), 2, 6, generator=torch.Generator().manual_seed(4)) < 0.4
    on[0] = torch.tensor([True, False, False, False, True, False])
    picture = torch.rand(6, 3, 32, 32)
    together = paths(picture, TASKS[:2], [dict(zip(TASKS, row)) for row in on])
    assert rows[paths.blocks[0]] == 2
    for i in range(6):
        for k, task in enumerate(TASKS[:2]):
            alone = paths(picture[i : i + 1], [task], [{task: bool(gate)} for gate in on[:, k, i]])[task]
            assert_close([level[i : i + 1] for level in together[task]], alone, 1e-4)


def test_what_can_be_skipped():
    backbone = ms.backbones.load("resnet34")
    assert len(skippable(backbone)) == 16
    assert [node.path for node in skippable(ms.backbones.load("mobilenetv2_035"))][:2] == [
        "blocks.1.1",
        "blocks.2.1",
    ]
    with pytest.raises(ValueError, match="no block that can be skipped"):
        Paths(ms.backbones.load("vgg11"))


def test_a_dropped_block_is_gone_and_wanting_it_is_an_error(backbones):
    paths = Paths(copy.deepcopy(backbones["test_resnet"]))
    before = sum(p.numel() for p in paths.parameters())
    inner = sum(p.numel() for p in paths.block(1).block.parameters())
    paths.drop([1])
    assert sum(p.numel() for p in paths.parameters()) == before - inner
    gates = [{"a": True} for _ in paths.blocks]
    with pytest.raises(ValueError, match="Block 1 is not in this network"):
        paths(torch.rand(2, 3, 32, 32), ["a"], gates)


def test_statistics_computed_anew_are_the_mean_over_batches_and_tasks(backbones):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.paths = Paths(copy.deepcopy(backbones["test_resnet"])).double()
            self.gates = hard(len(self.paths.blocks))

        def forward(self, picture, tasks):
            return self.paths(picture, tasks, self.gates)

    network = Network().eval()
    batches = [image(count=4)[:, :, :, : 16 + 16 * i] for i in range(2)]
    inputs = {}
    for name, module in network.named_modules():
        if isinstance(module, BranchNorm):
            module.norm.register_forward_pre_hook(
                lambda _, arguments, name=name: inputs.setdefault(name, []).append(arguments[0])
            )
    recompute_statistics(network, [(batch, TASKS) for batch in batches])
    stem = next(name for name in inputs if "layer" not in name)
    means = [part.mean((0, 2, 3)) for part in inputs[stem]]
    assert len(means) == 2  # the stem is run once a batch, whatever the number of tasks
    norm = dict(network.named_modules())[stem].norm
    assert torch.allclose(norm.running_mean, torch.stack(means).mean(0))
    single = Network().eval()
    found = []
    for task in TASKS:
        single.load_state_dict(network.state_dict())
        recompute_statistics(single, [(batch, [task]) for batch in batches])
        found.append({n: b.clone() for n, b in buffers(single).items()})
    shared = [n for n in found[0] if n.startswith("paths.backbone.model.bn1")]
    for n in shared:
        assert torch.allclose(buffers(network)[n], torch.stack([f[n] for f in found]).mean(0))
    assert network.training is False
    assert all(m.momentum == 0.1 for m in network.modules() if isinstance(m, _BatchNorm))
