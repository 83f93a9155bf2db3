"""Balancing: what each method makes of the tasks' losses and gradients, on its own and in a training."""

from __future__ import annotations

import builtins
import math

import pytest
import torch
from torch import nn

import mtlsearch as ms
from mtlsearch.balancing import (
    Aggregate,
    DynamicWeightAverage,
    Fixed,
    ParetoMTL,
    Step,
    Uncertainty,
    torchjd,
)
from mtlsearch.callbacks import LastCheckpoint
from tiny import SGD, Killed, Stop, TinyData, ToySearcher, copy_state, differing, make_tasks, make_trainer

NAMES = [
    "UPGrad",
    "MGDA",
    "PCGrad",
    "CAGrad",
    "NashMTL",
    "IMTLG",
    "AlignedMTL",
    "GradDrop",
    "ConFIG",
    "DualProj",
]
ARGUMENTS = {"CAGrad": {"c": 0.5}}
METHODS = {
    "fixed": Fixed,
    "uncertainty": lambda: Uncertainty(lr_factor=10),
    "dwa": lambda: DynamicWeightAverage(temperature=0.1),
    "pareto": lambda: ParetoMTL((1, 4)),
    "pcgrad": lambda: torchjd("PCGrad"),
    "nashmtl": lambda: torchjd("NashMTL"),
    "graddrop": lambda: torchjd("GradDrop"),
}


class Total(nn.Module):
    """The sum of the gradients: what there is without balancing."""

    def forward(self, matrix):
        return matrix.sum(dim=0)


class Mean(nn.Module):
    def forward(self, matrix):
        return matrix.mean(dim=0)


def step(terms, parameters, **others):
    """One whose values are its terms."""
    values = {name: term.detach() for name, term in terms.items()}
    return Step(terms, others.pop("values", values), parameters, torch.Tensor.backward, **others)


def trained(make=ToySearcher, epochs=1, missing=None, **arguments):
    """A searcher after a training."""
    searcher = make(**arguments)
    make_trainer(epochs).fit(searcher, searcher.train_data(TinyData(searcher.tasks, missing=missing)))
    return searcher


def close(one, other):
    one, other = copy_state(one.net), copy_state(other.net)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, msg=name)


# What weighs losses


def test_fixed_weights_are_the_sum_of_the_losses_bit_for_bit():
    x = nn.Parameter(torch.tensor([0.1, 0.7]))
    terms = {"semantic": 0.3 * x[0], "depth": x[1] ** 2}
    expected = torch.autograd.grad(torch.stack(list(terms.values())).sum() / 3, x, retain_graph=True)[0]
    assert Fixed().for_tasks(make_tasks()).backward(step(terms, [x], accumulate=3)) == {}
    assert torch.equal(x.grad, expected)
    assert not Fixed().for_tasks(make_tasks()).state_dict()


def test_uncertainty_by_hand():
    x = nn.Parameter(torch.tensor([3.0, 5.0]))
    balancing = Uncertainty().for_tasks(make_tasks())
    with torch.no_grad():
        balancing.log_variance.copy_(torch.tensor([0.0, math.log(2)]))
    factors = balancing.backward(step({"semantic": x[0], "depth": x[1]}, [x]))
    assert factors == {"semantic": 1, "depth": pytest.approx(0.5)}
    torch.testing.assert_close(x.grad, torch.tensor([1.0, 0.5]))
    # d/ds of exp(-s) L + s / 2
    torch.testing.assert_close(balancing.log_variance.grad, torch.tensor([0.5 - 3, 0.5 - 2.5]))


def test_uncertainty_tends_to_weights_in_inverse_proportion_to_the_losses():
    balancing = Uncertainty().for_tasks(make_tasks())
    losses = {"semantic": torch.tensor(0.2), "depth": torch.tensor(4.0)}
    optimizer = torch.optim.Adam(balancing.parameters(), lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        factors = balancing.backward(step(losses, []))
        optimizer.step()
    assert factors == {"semantic": pytest.approx(2.5, rel=1e-3), "depth": pytest.approx(0.125, rel=1e-3)}


def test_the_log_variance_of_a_task_without_labels_rests():
    balancing = Uncertainty().for_tasks(make_tasks())
    x = nn.Parameter(torch.ones(2))
    terms = {"semantic": x[0], "depth": 0 * x[1]}
    balancing.backward(step(terms, [x], values={"semantic": torch.tensor(1.0)}))
    assert balancing.log_variance.grad.tolist() == [-0.5, 0]


def test_log_variances_are_learnt_without_decay_and_outside_clipping():
    searcher = trained(epochs=2, balancing=Uncertainty(lr_factor=2.0), clip=1e-12, optimizer=SGD)
    assert searcher.balancing.log_variance.abs().min() > 0.01  # the weights hardly move
    *weights, group = searcher.configure_optimizers()[0].param_groups
    assert group["params"] == [searcher.balancing.log_variance]
    assert group["weight_decay"] == 0 and group["lr"] == pytest.approx(0.2)
    assert sum(len(group["params"]) for group in weights) == len(searcher.net.weights())


def test_dynamic_weights_by_hand():
    balancing = DynamicWeightAverage(temperature=2.0).for_tasks(make_tasks())
    x = nn.Parameter(torch.ones(2))

    def epoch(*losses):
        for semantic, depth in losses:
            values = {"semantic": torch.tensor(semantic), "depth": torch.tensor(depth)}
            factors = balancing.backward(step({"semantic": x[0], "depth": x[1]}, [x], values=values))
        balancing.end_epoch()
        return [float(factor) for factor in factors.values()]

    assert epoch((3.0, 1.0), (5.0, 3.0)) == [1, 1]  # means of 4 and 2
    assert epoch((1.0, 2.0), (1.0, 4.0)) == [1, 1]  # of 1 and 3
    balancing.end_epoch()  # one of arch parameters alone
    x.grad = None
    slow, fast = math.exp(3 / 2 / 2), math.exp(1 / 4 / 2)
    expected = [2 * fast / (slow + fast), 2 * slow / (slow + fast)]
    assert epoch((1.0, 1.0)) == pytest.approx(expected)
    torch.testing.assert_close(x.grad, torch.tensor(expected))


# What combines gradients


def test_shared_parameters_get_the_aggregate_and_others_their_own_gradient():
    shared, semantic, depth, rest = (nn.Parameter(torch.tensor([value])) for value in (1.0, 2.0, 3.0, 4.0))
    terms = {"semantic": (shared * semantic).sum(), "depth": (5 * shared * depth).sum()}
    Aggregate(Mean()).for_tasks(make_tasks()).backward(step(terms, [shared, semantic, depth, rest]))
    assert shared.grad.tolist() == [(2 + 15) / 2]
    assert semantic.grad.tolist() == [1] and depth.grad.tolist() == [5] and rest.grad is None


def test_conflicting_gradients_are_projected():
    x = nn.Parameter(torch.zeros(2))
    terms = {"semantic": x @ torch.tensor([1.0, 0.0]), "depth": x @ torch.tensor([-1.0, 1.0])}
    torchjd("PCGrad").for_tasks(make_tasks()).backward(step(terms, [x]))
    # (1, 0) less its part along (-1, 1) is (1/2, 1/2), and (-1, 1) less its part along (1, 0) is (0, 1).
    torch.testing.assert_close(x.grad, torch.tensor([0.5, 1.5]))


@pytest.mark.parametrize("name", NAMES)
def test_aggregators_of_torchjd_do_not_raise_a_loss_that_they_could_lower(name):
    x = nn.Parameter(torch.zeros(3))
    rows = torch.tensor([[1.0, 0.0, 0.5], [-0.5, 1.0, 0.0]])
    terms = {"semantic": x @ rows[0], "depth": x @ rows[1]}
    torch.manual_seed(0)
    torchjd(name, **ARGUMENTS.get(name, {})).for_tasks(make_tasks()).backward(step(terms, [x]))
    assert x.grad.norm() > 0.01
    if name != "GradDrop":
        assert (rows @ x.grad > -1e-3).all()


def test_terms_that_are_no_tasks_losses_are_not_balanced():
    x = nn.Parameter(torch.tensor([1.0, 1.0]))
    terms = {"semantic": 2 * x[0], "depth": 4 * x.sum(), "penalty": 8 * x[1]}
    values = {"semantic": torch.tensor(1.0), "depth": torch.tensor(1.0)}
    Aggregate(Mean()).for_tasks(make_tasks()).backward(step(terms, [x], values=values))
    assert x.grad.tolist() == [3, 10]


def test_a_task_without_labels_takes_no_part():
    x = nn.Parameter(torch.tensor([1.0]))
    balancing = Aggregate(Mean()).for_tasks(make_tasks("semantic", "depth", "normals"))
    for labelled, expected in {("semantic", "depth"): 3, ("depth",): 4}.items():
        terms = {"semantic": 2 * x.sum(), "depth": 4 * x.sum(), "normals": 0 * x.sum()}
        balancing.backward(step(terms, [x], values=dict.fromkeys(labelled, torch.tensor(1.0))))
        assert x.grad.tolist() == [expected]


def test_gradients_are_aggregated_over_all_batches_of_an_update():
    seen = []

    class Watching(nn.Module):
        def forward(self, matrix):
            seen.append(matrix)
            return matrix.sum(dim=0)

    x = nn.Parameter(torch.tensor([1.0]))
    balancing = Aggregate(lambda count: Watching()).for_tasks(make_tasks())
    balancing.backward(step({"semantic": 2 * x.sum(), "depth": x.sum()}, [x], accumulate=2, ends=False))
    assert x.grad is None and not seen
    balancing.backward(step({"semantic": 4 * x.sum()}, [x], accumulate=2))
    assert [matrix.tolist() for matrix in seen] == [[[3], [0.5]]] and x.grad.tolist() == [3.5]


def test_gradients_that_are_not_finite_are_named():
    x = nn.Parameter(torch.tensor([0.0]))
    balancing = Aggregate(Mean()).for_tasks(make_tasks())
    with pytest.raises(ValueError, match="The gradient of 'depth' is not finite"):
        balancing.backward(step({"semantic": x.sum(), "depth": x.sqrt().sum()}, [x]))


def test_half_precision_is_refused():
    x = nn.Parameter(torch.tensor([0.0]))
    balancing = Aggregate(Mean()).for_tasks(make_tasks())
    with pytest.raises(ValueError, match="precision to bf16-mixed or 32-true"):
        balancing.backward(step({"semantic": x.sum()}, [x], precision="16-mixed"))


def test_autocast_leaves_the_aggregation_in_single_precision():
    x = nn.Parameter(torch.rand(100))
    kinds = []

    class Watching(nn.Module):
        def forward(self, matrix):
            kinds.append((matrix @ matrix.T).dtype)
            return matrix.sum(dim=0)

    with torch.autocast("cpu", torch.bfloat16):
        terms = {"semantic": x.sum(), "depth": (x**2).sum()}
        Aggregate(Watching()).for_tasks(make_tasks()).backward(step(terms, [x]))
    assert kinds == [torch.float32]


# torchjd


def test_what_is_missing_of_torchjd_is_said(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **others):
        if name.startswith("torchjd"):
            raise ModuleNotFoundError("No module named 'torchjd'", name="torchjd")
        return real(name, *arguments, **others)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"UPGrad needs torchjd .* pip install 'mtlsearch\[balancing\]'"):
        torchjd("UPGrad")


def test_names_and_arguments_of_torchjd_are_checked():
    with pytest.raises(ValueError, match=r"no aggregator 'UPgrad': take one of .*UPGrad"):
        torchjd("UPgrad")
    with pytest.raises(ValueError, match=r"CAGrad: .*missing 1 required positional argument: 'c'"):
        torchjd("CAGrad")


# In a training


def test_the_sum_of_the_gradients_is_no_balancing():
    close(trained(), trained(balancing=Aggregate(Total())))
    close(trained(accumulate=2, clip=0.1), trained(accumulate=2, clip=0.1, balancing=Aggregate(Total())))


@pytest.mark.parametrize("method", ["pcgrad", "pareto", "uncertainty"])
def test_bfloat16_is_trained_in(method):
    searcher = ToySearcher(balancing=METHODS[method]())
    trainer = make_trainer(1, precision="bf16-mixed")
    trainer.fit(searcher, searcher.train_data(TinyData(searcher.tasks)))
    assert all(value.isfinite().all() for value in searcher.net.state_dict().values())
    assert {value.dtype for value in searcher.net.weights()} == {torch.float32}


def adashare(**arguments):
    tasks = make_tasks("semantic", "depth", "normals")
    return ms.AdaShare(tasks, "test_resnet", warmup=0.0, optimizer=SGD, arch_optimizer=SGD, **arguments)


def mtlnas(**arguments):
    others = {"single_task": False, "init_w_ti": 0.7, "optimizer": SGD, "arch_optimizer": SGD}
    return ms.MTLNAS(make_tasks("semantic", "depth", "normals"), "test_convnext", **others, **arguments)


def hard_sharing(**arguments):
    return ms.HardSharing(make_tasks(), "test_resnet", optimizer=SGD, **arguments)


def single_task(**arguments):
    return ms.SingleTask(make_tasks(), "test_resnet", optimizer=SGD, **arguments)


@pytest.mark.parametrize("make", [adashare, mtlnas, hard_sharing, single_task])
def test_it_is_none_in_the_networks_either(make):
    missing = {"depth": (0, 1, 2)}
    close(trained(make, missing=missing), trained(make, missing=missing, balancing=Aggregate(Total())))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_any_number_of_tasks(method):
    for names in (["depth"], ["semantic", "depth"], ["semantic", "depth", "normals"]):
        balancing = METHODS[method]() if method != "pareto" else ParetoMTL()
        missing = {names[-1]: (0, 1, 2, 3, 4)}  # a batch has none
        searcher = trained(epochs=3, tasks=make_tasks(*names), balancing=balancing, missing=missing)
        assert all(value.isfinite().all() for value in searcher.net.state_dict().values())
    plain = trained(epochs=3, tasks=make_tasks(*names), missing=missing)
    changed = differing(copy_state(plain.net), copy_state(searcher.net))
    assert bool(changed) == (method != "fixed")


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_training_is_one_that_was_not_stopped(method, tmp_path):
    def fit(searcher, *callbacks, **others):
        trainer = make_trainer(4, callbacks=list(callbacks), enable_checkpointing=bool(callbacks))
        trainer.fit(searcher, searcher.train_data(TinyData(searcher.tasks)), weights_only=True, **others)

    whole, stopped, resumed = (ToySearcher(balancing=METHODS[method](), dropout=0.2) for _ in range(3))
    fit(whole)
    path = tmp_path / "last.ckpt"
    with pytest.raises(Killed):
        fit(stopped, LastCheckpoint(path), Stop(3))
    fit(resumed, ckpt_path=path)
    assert not differing(copy_state(whole), copy_state(resumed))


def arch_gradients(make, monkeypatch, **arguments):
    """Those of the first update of the arch parameters, made before any of the weights."""
    seen = []
    searcher = make(**arguments)
    update = searcher.update

    def watched(group, batch, batch_index):
        if group == "weights" or seen:
            return
        step = torch.optim.SGD.step

        def look(optimizer, *arguments, **others):
            seen.append(
                [p.grad.clone() for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
            )
            return step(optimizer, *arguments, **others)

        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.SGD, "step", look)
            update(group, batch, batch_index)

    searcher.update = watched
    make_trainer(1).fit(searcher, searcher.train_data(TinyData(searcher.tasks)))
    return seen[0]


@pytest.mark.parametrize("method", ["uncertainty", "pcgrad"])
@pytest.mark.parametrize("make", [adashare, mtlnas])
def test_arch_parameters_are_not_balanced(make, method, monkeypatch):
    monkeypatch.setattr(Uncertainty, "begin", uneven)
    balancing = METHODS[method]()
    plain = arch_gradients(make, monkeypatch)
    assert any(gradient.abs().max() > 0 for gradient in plain)
    for one, other in zip(plain, arch_gradients(make, monkeypatch, balancing=balancing)):
        assert torch.equal(one, other)


def uneven(balancing):
    balancing.log_variance = nn.Parameter(torch.arange(float(len(balancing.names))))


def test_stages_balance_each_from_the_start():
    given = Uncertainty()
    searcher = adashare(balancing=given, samples=1)
    stages = [searcher, searcher._stage(0, searcher.derive())]
    assert len({id(stage.balancing) for stage in stages} | {id(given)}) == 3
    assert all(stage.balancing.log_variance.tolist() == [0, 0, 0] for stage in stages)


def test_mtnas_balances_its_finetuning():
    stack = {"channels": 4, "cells": 3, "reductions": [1], "search_branches": False, "presearch": False}
    searcher = ms.MTNAS(make_tasks(), balancing=Uncertainty(), **stack)
    finetune = searcher.next_stage(searcher.first_stage())
    assert isinstance(searcher.balancing, Fixed) and isinstance(finetune.balancing, Uncertainty)


def test_learnt_factors_are_logged():
    searcher = ToySearcher(balancing=Uncertainty())
    trainer = make_trainer(1)
    trainer.fit(searcher, searcher.train_data(TinyData(searcher.tasks)))
    names = {name for name in trainer.callback_metrics if name.startswith("train/weight/")}
    assert names == {"train/weight/semantic", "train/weight/depth"}
