import copy

import pytest
import torch

from mtlsearch.nn.cells import EDGES, NODES, Cell, check_pairs, derive_pairs
from mtlsearch.nn.mixed import MixedCell
from mtlsearch.nn.operations import OPERATIONS, operation
from mtlsearch.searcher import frozen_statistics
from plain_cells import PlainCell

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


def gradients(cell, plain, of):
    """Pairs of gradients: the mixed cell's and the plain cell's, by name."""
    mirror = copy.deepcopy(cell)
    for parameter, own in zip(mirror.parameters(), cell.parameters()):
        parameter.data = torch.zeros_like(own) if own.grad is None else own.grad
    for edge in range(len(EDGES)):
        for name, op in zip(OPERATIONS, plain.operations[edge]):
            state = mirror.state(edge, name)
            for key, parameter in op.named_parameters():
                yield f"{edge} {name} {key}", state[key], parameter.grad
    for key, parameter in plain.prepare.named_parameters():
        yield key, cell.prepare.get_parameter(key).grad, parameter.grad
    yield from of


def statistics(cell, plain):
    for edge in range(len(EDGES)):
        for name, op in zip(OPERATIONS, plain.operations[edge]):
            state = cell.state(edge, name)
            for key, buffer in op.named_buffers():
                yield f"{edge} {name} {key}", state[key], buffer


def close(a, b):
    return torch.allclose(a, b, rtol=0, atol=1e-10 * max(b.detach().abs().max().item(), 1.0))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("partial", [1, 2])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("size", [(8, 6), (7, 5)])
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
    for what, a, b in statistics(cell, plain):
        assert close(a, b), what
    found = zip(("s0", "s1", "weights", "edges"), [leaf.grad for leaf in leaves], expected)
    for what, a, b in gradients(cell, plain, found):
        assert close(a, b), what
