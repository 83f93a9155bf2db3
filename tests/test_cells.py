import pytest
import torch

from mtlsearch.nn.cells import EDGES, NODES, Cell, check_pairs, derive_pairs
from mtlsearch.nn.mixed import MixedCell
from mtlsearch.nn.operations import OPERATIONS, FactorizedReduce, ReLUConvBN, even_and_odd, operation
from mtlsearch.searcher import frozen_statistics
from plain_cells import PlainCell, paired_gradients, paired_statistics

KINDS = {
    "normal": {"reduction": False},
    "reduction": {"reduction": True},
    "reduces_first": {"reduction": False, "reduces_first": True},
    "unpadded": {"reduction": False, "unpadded": True},
    "all": {"reduction": True, "reduces_first": True, "unpadded": True},
}


def make(kind="normal", channels=4, dtype=torch.double, **others):
    torch.manual_seed(0)
    cell = MixedCell((5, 6), channels, **KINDS[kind], **others).to(dtype)
    for name, buffer in cell.named_buffers():  # as if it had been trained
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return cell


def inputs(kind="normal", size=(8, 6), dtype=torch.double, batch=2):
    first = [2 * s for s in size] if KINDS[kind].get("reduces_first") else size
    if kind == "all":
        first = [s - 1 for s in first]  # an odd size
    s0, s1 = torch.randn(batch, 5, *first, dtype=dtype), torch.randn(batch, 6, *size, dtype=dtype)
    return s0.requires_grad_(), s1.requires_grad_()


def arch(edges=True):
    weights = torch.rand(14, 8, dtype=torch.double).requires_grad_()
    return weights, torch.rand(14, dtype=torch.double).requires_grad_() if edges else None


def close(a, b):
    return torch.allclose(a, b, rtol=0, atol=1e-10 * max(b.detach().abs().max().item(), 1.0))


def one_hot(pairs):
    weights = torch.zeros(14, 8, dtype=torch.double)
    for i, (name, source) in enumerate(pairs):
        weights[EDGES.index((source, NODES[i // 2])), OPERATIONS.index(name)] = 1
    return weights


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_gives_the_size_divided_by_its_stride_rounded_up(name, stride):
    for height, width in ((8, 6), (7, 5), (1, 1), (1, 4)):
        result = operation(name, 3, stride)(torch.randn(2, 3, height, width))
        assert result.shape == (2, 3, -(-height // stride), -(-width // stride))


def test_an_average_pool_counts_what_is_in_the_map_only():
    pool = operation("avg_pool_3x3", 1, 1)[0]
    assert torch.equal(pool(torch.ones(1, 1, 3, 3)), torch.ones(1, 1, 3, 3))


def test_factorized_reduction_loses_no_pixel_of_the_diagonal():
    reduce = operation("skip_connect", 2, 2)
    for conv in (reduce.even, reduce.odd):
        torch.nn.init.ones_(conv.weight)
    x = torch.arange(1.0, 10).view(1, 1, 3, 3).expand(1, 2, 3, 3)
    seen = []
    reduce.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    reduce.eval()(x)
    assert seen[0][0, 0].tolist() == [[2, 6], [14, 18]]  # pixels 1, 3, 7, 9 of both channels
    assert seen[0][0, 1].tolist() == [[10, 0], [0, 0]]  # pixel 5, and what is outside


@pytest.mark.parametrize("module", [ReLUConvBN(3, 4), ReLUConvBN(3, 4, 3), FactorizedReduce(3, 4)])
def test_a_preparation_is_its_parts_in_values_and_gradients(module):
    module.double()
    x = torch.randn(2, 3, 7, 5, dtype=torch.double, requires_grad=True)
    ours = module.train()(x)
    if isinstance(module, ReLUConvBN):
        theirs = torch.nn.Sequential(*module)(x)
    else:
        even, odd = even_and_odd(x.relu())
        theirs = module.norm(torch.cat([module.even(even), module.odd(odd)], 1))
    pull = torch.randn_like(ours)
    leaves = [x, *module.parameters()]
    gradients = [torch.autograd.grad((output * pull).sum(), leaves) for output in (ours, theirs)]
    assert close(ours, theirs) and all(close(a, b) for a, b in zip(*gradients))


def test_an_unknown_operation_is_refused_by_name():
    with pytest.raises(ValueError, match=r"no operation 'conv_7x1'.*'none'"):
        operation("conv_7x1", 4, 1)


PAIRS = [
    ["sep_conv_3x3", 0],
    ["dil_conv_3x3", 1],
    ["skip_connect", 0],
    ["sep_conv_5x5", 1],
    ["max_pool_3x3", 1],
    ["dil_conv_5x5", 3],
    ["avg_pool_3x3", 0],
    ["skip_connect", 4],
]


def test_pairs_are_derived_by_the_best_operation_that_is_not_none():
    weights = torch.full((14, 8), 0.01)
    weights[:, 0] = 0.9  # none is not counted
    for node, best in {2: (0, 1), 3: (0, 2), 4: (1, 3), 5: (2, 4)}.items():
        for rank, source in enumerate(best):
            weights[EDGES.index((source, node)), 3 + rank] = 0.5 - 0.1 * rank
    expected = [["skip_connect", 0], ["sep_conv_3x3", 1], ["skip_connect", 0], ["sep_conv_3x3", 2]]
    expected += [["skip_connect", 1], ["sep_conv_3x3", 3], ["skip_connect", 2], ["sep_conv_3x3", 4]]
    assert derive_pairs(weights) == expected
    edges = torch.ones(14)
    edges[EDGES.index((0, 3))] = 0.01  # 0.5 * 0.01 is less than the 0.01 of the other
    assert derive_pairs(weights, edges)[2:4] == [["max_pool_3x3", 1], ["sep_conv_3x3", 2]]
    check_pairs(derive_pairs(torch.rand(14, 8), torch.rand(14)))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda pairs: pairs[:7], "8 pairs"),
        (lambda pairs: "sep_conv", "8 pairs"),
        (lambda pairs: [*pairs[:3], ["sep_conv_3x3"], *pairs[4:]], "Pair 3 must be"),
        (lambda pairs: [["none", 0], *pairs[1:]], "Pair 0 names the operation 'none'.*max_pool"),
        (
            lambda pairs: [*pairs[:5], ["skip_connect", 4], *pairs[6:]],
            "node 4, whose inputs are 0 to 3, not 4",
        ),
        (lambda pairs: [["skip_connect", True], *pairs[1:]], "not True"),
        (lambda pairs: [pairs[0], ["skip_connect", 0], *pairs[2:]], "Both pairs of node 2 take input 0"),
    ],
)
def test_what_is_no_cell_is_refused_by_name(change, message):
    check_pairs(PAIRS)
    with pytest.raises(ValueError, match=message):
        Cell(change(PAIRS), (4, 4), 4, reduction=False)


def test_channels_must_divide():
    with pytest.raises(ValueError, match=r"6 channels .* partial=4"):
        MixedCell((4, 4), 6, reduction=False, partial=4)


def test_inputs_that_do_not_fit_are_refused():
    cell = MixedCell((4, 4), 4, reduction=False)
    with pytest.raises(ValueError, match=r"\(2, 4, 8, 8\) and \(2, 4, 4, 4\)"):
        cell(torch.randn(2, 4, 8, 8), torch.randn(2, 4, 4, 4), torch.rand(14, 8))
    with pytest.raises(ValueError, match=r"weights must be \(14, 8\).* not \(\(8, 14\)"):
        cell(torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.rand(8, 14))
    cell = MixedCell((4, 4), 4, reduction=False, unpadded=True)
    with pytest.raises(ValueError, match="too small"):
        cell(torch.randn(2, 4, 2, 8), torch.randn(2, 4, 2, 8), torch.rand(14, 8))


@pytest.mark.parametrize("size", [(8, 6), (7, 5)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_derived_cell_is_the_mixed_one_under_hard_weights(kind, size):
    for pairs in (PAIRS, derive_pairs(torch.rand(14, 8))):
        cell = make(kind)
        derived = cell.extract(pairs)
        s0, s1 = inputs(kind, size)
        for training in (False, True, False):  # and with the statistics that training has moved
            cell.train(training), derived.train(training)
            assert close(cell(s0, s1, one_hot(pairs)), derived(s0, s1))


def test_with_partial_channels_only_the_preparation_is_extracted():
    cell = make("normal", partial=2)
    derived = cell.extract(PAIRS)
    own = cell.prepare.state_dict()
    assert all(torch.equal(own[k], v) for k, v in derived.prepare.state_dict().items() if k in own)
    assert derived(*inputs()).shape == (2, 16, 8, 6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("partial", [1, 2])
@pytest.mark.parametrize("size, recompute", [((8, 6), False), ((7, 5), True)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mixed_cell_is_the_plain_one_in_outputs_statistics_and_gradients(
    kind, size, recompute, partial, training
):
    cell = make(kind, partial=partial, recompute=recompute).train(training)
    plain = PlainCell(cell)
    s0, s1 = inputs(kind, size)
    weights, edges = arch(edges=partial > 1)
    leaves = [s0, s1, weights, *([] if edges is None else [edges])]
    theirs = plain(s0, s1, weights, edges)
    pull = torch.randn_like(theirs)
    (theirs * pull).sum().backward()
    expected = [leaf.grad.clone() for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    ours = cell(s0, s1, weights, edges)
    (ours * pull).sum().backward()
    assert close(ours, theirs)
    for what, a, b in paired_statistics(cell, plain):
        assert close(a, b), what
    for what, a, b in paired_gradients(cell, plain):
        assert close(a, b), what
    for leaf, b in zip(leaves, expected):
        assert close(leaf.grad, b), leaf.shape


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("partial", [1, 2])
def test_each_step_has_its_own_gradients_only(partial, recompute):
    cell = make("reduction", partial=partial, recompute=recompute)
    s0, s1 = inputs()
    pull = torch.randn(2, 16, 4, 3, dtype=torch.double)
    weights, edges = arch()

    def run(wanted, gates):
        for parameter in cell.parameters():
            parameter.grad = None
            parameter.requires_grad_(wanted)
        (cell(s0.detach(), s1.detach(), *gates) * pull).sum().backward()
        return [parameter.grad for parameter in cell.parameters()]

    both = run(True, (weights, edges))
    of_arch = weights.grad.clone(), edges.grad.clone()
    alone = run(True, (weights.detach(), edges.detach()))
    assert all(close(a, b) for a, b in zip(alone, both))
    weights.grad = edges.grad = None
    assert all(gradient is None for gradient in run(False, (weights, edges)))
    assert close(weights.grad, of_arch[0]) and close(edges.grad, of_arch[1])


def test_frozen_statistics_leave_every_buffer_alone():
    cell = make("reduction")
    before = {name: buffer.clone() for name, buffer in cell.named_buffers()}
    s0, s1 = inputs()
    with frozen_statistics(cell):
        cell(s0, s1, arch()[0]).sum().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in cell.named_buffers())
    cell(s0, s1, arch()[0])
    moved = [name for name, buffer in cell.named_buffers() if not torch.equal(buffer, before[name])]
    assert len(moved) == len(before)


def test_each_norm_has_its_own_momentum_and_mode():
    cell = make("normal")
    plain = PlainCell(cell)
    for module in (cell, plain):
        norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.momentum = None  # the mean of all batches
    cell.outgoing[0]["sep_conv_3x3"].norms[1].eval()
    for edge, (source, _) in enumerate(EDGES):
        if source == 0:
            plain.operations[edge][4][-1].eval()
    weights, _ = arch()
    for _ in range(3):
        s0, s1 = inputs()
        assert close(cell(s0, s1, weights), plain(s0, s1, weights))
    for what, a, b in paired_statistics(cell, plain):
        assert close(a, b), what


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("size", [(8, 6), (1, 1)])
def test_constant_inputs_give_numbers(size, recompute):
    cell = make("reduction", dtype=torch.float, recompute=recompute)
    s0 = torch.ones(2, 5, *size, requires_grad=True)
    s1 = torch.zeros(2, 6, *size, requires_grad=True)
    weights = torch.rand(14, 8, requires_grad=True)
    output = cell(s0, s1, weights)
    output.square().sum().backward()
    gradients = [parameter.grad for parameter in cell.parameters()]
    for tensor in (output, s0.grad, s1.grad, weights.grad, *gradients):
        assert tensor.isfinite().all()


def test_a_single_value_has_no_statistics():
    cell = MixedCell((4, 4), 4, reduction=False)
    with pytest.raises(ValueError, match="more than 1 value"):
        cell(torch.randn(1, 4, 1, 1), torch.randn(1, 4, 1, 1), torch.rand(14, 8))
    assert cell.eval()(torch.randn(1, 4, 1, 1), torch.randn(1, 4, 1, 1), torch.rand(14, 8)).shape[1] == 16


def test_bf16_autocast_changes_little():
    cell = make("normal", dtype=torch.float)
    s0, s1 = inputs(dtype=torch.float)
    weights = torch.rand(14, 8, requires_grad=True)
    exact = cell(s0, s1, weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = cell(s0, s1, weights)
        rough.sum().backward()
    assert (rough - exact).norm() < 0.05 * exact.norm() and weights.grad.isfinite().all()
