"""Running statistics for each path of a finished network."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mtlsearch as ms
from mtlsearch.cost import cost
from mtlsearch.nn.branches import BranchNorm
from mtlsearch.nn.statistics import recompute_statistics
from mtlsearch.searchers.policy import PolicyNetwork, policy_architecture
from tiny import make_tasks

NAMES = ["semantic", "depth", "normals"]
TASKS = make_tasks(*NAMES, plain=True)


@pytest.fixture(scope="module", params=["test_resnet", "mobilenetv2_035"])
def backbone(request):
    torch.manual_seed(0)
    backbone = ms.backbones.load(request.param)
    for module in backbone.modules():  # a block whose last norm starts at 0 would hide what it does
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return backbone


def selection(network):
    """The first two tasks part at the second block, the third from both at the fourth."""
    count = len(network.paths.blocks)
    select = {name: [True] * count for name in NAMES}
    select["depth"][1] = select["normals"][3] = False
    return select


def batches(*tasks):
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(4, 3, 32, 32 + 16 * i, generator=generator, dtype=torch.double) for i in range(3)]
    return [(image, list(tasks)) for image in images]


def statistics(network):
    return {name: value.clone() for name, value in network.named_buffers() if "running" in name}


def alone(network, name):
    """What a pass gives that goes with the statistics of this task's own passes, one set of them in all."""
    single = copy.deepcopy(network)
    single.select = selection(network)
    recompute_statistics(single, batches(name))
    image, _ = batches()[0]
    return single(image, [name])[name]


def test_a_task_is_evaluated_as_with_the_statistics_of_its_own_path(backbone):
    whole = PolicyNetwork(TASKS, backbone).double().eval()
    network = whole.reduced(selection(whole))
    recompute_statistics(network, batches(*NAMES))
    image, _ = batches()[0]
    together = network(image)
    for name in NAMES:
        assert torch.allclose(together[name], alone(whole, name), rtol=1e-9, atol=1e-9)
        assert torch.allclose(network(image, [name])[name], together[name], rtol=1e-9, atol=1e-9)
    mixed = copy.deepcopy(whole)
    mixed.select = selection(whole)
    recompute_statistics(mixed, batches(*NAMES))
    assert not torch.allclose(mixed(image)["depth"], together["depth"], rtol=1e-3, atol=1e-3)


def test_batches_for_some_tasks_only_count_for_their_paths(backbone):
    whole = PolicyNetwork(TASKS, backbone).double().eval()
    network = whole.reduced(selection(whole))
    recompute_statistics(network, [one for name in NAMES for one in batches(name)])
    image, _ = batches()[0]
    for name in NAMES:
        assert torch.allclose(network(image)[name], alone(whole, name), rtol=1e-9, atol=1e-9)


def test_a_norm_has_the_statistics_of_the_paths_that_reach_it(backbone):
    network = PolicyNetwork(TASKS, backbone)
    reduced = network.reduced(selection(network))
    norms = {name: m for name, m in reduced.named_modules() if isinstance(m, BranchNorm)}
    first, second, third, fourth = reduced.paths.blocks[:4]

    def inside(path):
        prefix = f"paths.backbone.model.{path}.block."
        return {tuple(m.rows.items()) for name, m in norms.items() if name.startswith(prefix)}

    assert inside(first) == inside(second) == {()}
    assert inside(third) == {(("semantic", 0), ("normals", 0), ("depth", 1))}
    assert inside(fourth) == {(("semantic", 0), ("depth", 1))}
    before, after = statistics(network), statistics(reduced)
    assert {value.ndim for value in after.values()} == {1, 2}
    for name, value in after.items():
        assert torch.equal(value, before[name].expand_as(value))
    sizes = [sum(p.numel() for p in net.parameters()) for net in (network, reduced)]
    assert sizes[0] == sizes[1] == cost(reduced, torch.rand(1, 3, 32, 32), NAMES, repeats=1)["params"]


def test_one_path_has_one_set_of_statistics(backbone):
    network = PolicyNetwork(TASKS, backbone)
    count = len(network.paths.blocks)
    same = network.reduced({name: [True] * (count - 1) + [False] for name in NAMES})
    again = network.reduced(selection(network)).reduced({name: [True] * count for name in NAMES})
    for reduced in (same, again):
        assert all(value.ndim == 1 for value in statistics(reduced).values())
        found = [m.rows for m in reduced.modules() if isinstance(m, BranchNorm)]
        assert not any(found)


def test_training_is_the_same_pass_whatever_statistics_are_kept(backbone):
    whole = PolicyNetwork(TASKS, backbone).double()
    network = whole.reduced(selection(whole))
    gates = network.gates(torch.empty(0))
    image, _ = batches()[0]
    outputs, expected = network(image), whole(image, gates=gates)
    assert all(torch.equal(outputs[name], expected[name]) for name in NAMES)
    for name in NAMES:  # a path's rows are what passes of its tasks, one after another, leave
        single = PolicyNetwork(TASKS, backbone).double()
        group = [task for task in NAMES if selection(whole)[task] == selection(whole)[name]]
        for task in group:
            single(image, [task], [{task: gate[task]} for gate in gates])
        own = dict(single.named_modules())
        for path, module in network.named_modules():
            if isinstance(module, BranchNorm) and module.rows.get(name) is not None:
                tasks = [task for task, row in module.rows.items() if row == module.rows[name]]
                if tasks == group:
                    row = module.norm.running_var[module.rows[name]]
                    assert torch.allclose(row, own[path].norm.running_var, rtol=1e-9)


def test_the_round_trip_through_disk(backbone, tmp_path):
    whole = PolicyNetwork(TASKS, backbone)
    network = whole.reduced(selection(whole)).eval()
    recompute_statistics(network, [(image.float(), tasks) for image, tasks in batches(*NAMES)])
    architecture = policy_architecture(TASKS, backbone, selection(whole))
    (tmp_path / "architecture.json").write_text(architecture.to_json())
    save_file({name: value.contiguous() for name, value in network.state_dict().items()},
              tmp_path / "model.safetensors")  # fmt: skip
    loaded = ms.load(tmp_path, TASKS)
    assert network.state_dict().keys() == loaded.state_dict().keys()
    image = torch.rand(2, 3, 32, 32)
    for name, prediction in network(image).items():
        assert torch.equal(prediction, loaded(image)[name])


def test_a_gate_that_leaves_the_paths_is_refused(backbone):
    whole = PolicyNetwork(TASKS, backbone)
    network = whole.reduced(selection(whole)).eval()
    everything = [dict.fromkeys(NAMES, True)] * len(network.paths.blocks)
    with pytest.raises(ValueError, match="no running statistics in a block that its policy skips"):
        network(torch.rand(2, 3, 32, 32), ["normals"], everything)
