"""Balancing: what each method makes of the tasks' losses and gradients, on its own and in a training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mtlsearch as ms
from mtlsearch import balancing
from mtlsearch.balancing import Aggregate, Step, torchjd
from tiny import TinyData, ToySearcher, copy_state, make_tasks, make_trainer


class Total(nn.Module):
    """The sum of the gradients: what there is without balancing."""

    def forward(self, matrix):
        return matrix.sum(dim=0)


def trained(make, epochs=1, **arguments):
    searcher = make(**arguments)
    make_trainer(epochs).fit(searcher, searcher.train_data(TinyData(searcher.tasks)))
    return copy_state(searcher.net)


@pytest.mark.parametrize("name", ["UPGrad", "MGDA", "PCGrad", "NashMTL"])
def test_every_searcher_trains_with_an_aggregator(name):
    plain, found = trained(ToySearcher), trained(ToySearcher, balancing=torchjd(name))
    assert any(not torch.equal(plain[name], found[name]) for name in plain)
    assert all(value.isfinite().all() for value in found.values())


def test_the_sum_of_the_gradients_is_no_balancing():
    plain, found = trained(ToySearcher), trained(ToySearcher, balancing=Aggregate(Total()))
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, msg=name)
