from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import mtlsearch as ms
from mtlsearch import stages
from mtlsearch.data.module import TaskData
from mtlsearch.nn.mixed import MixedCell
from mtlsearch.nn.operations import OPERATIONS
from mtlsearch.search import fit as fit_stage
from mtlsearch.searchers.cell_search import CellSearch
from mtlsearch.searchers.cell_supernet import CellSupernet
from mtlsearch.searchers.cell_training import convert
from mtlsearch.searchers.genotypes import HANDMADE
from mtlsearch.testing import check_searcher
from tiny import SGD, Killed, Stop, TinyData, copy_state, differing, make_tasks, make_trainer

STACK = {"channels": 4, "cells": 3, "reductions": [1], "detection_cells": 1}
EPOCHS = {"branch": 2, "presearch": 2, "backbone": 2, "pretrain": 1, "finetune": 2}


class Pictures(TaskData):
    """Made-up pictures of three classes."""

    def __init__(self, images=8):
        super().__init__(tasks=[ms.tasks.classification("label", num_classes=3)], batch_size=4)
        self.images = images

    def samples(self, split):
        rng = np.random.default_rng(len(split))
        shape = (self.images, 32, 32, 3)
        images = rng.integers(0, 255, shape, dtype=np.uint8)
        return [{"image": image, "label": np.array(i % 3)} for i, image in enumerate(images)]


def make(tasks=None, **settings):
    return ms.MTNAS(tasks or make_tasks(), **{"auxiliary": Pictures(), "optimizer": SGD, **STACK, **settings})


def run(searcher, dir, data=None, stop=None, epochs=EPOCHS):
    """A run, killed in the stage and epoch `stop`."""

    def trainer(stage):
        made = stages.make_trainer(stage, epochs, dir, accelerator="cpu")
        if stop is not None and stage == stop[0]:
            made.callbacks.append(Stop(stop[1]))
        return made

    return ms.search(searcher, data or TinyData(searcher.tasks), trainer=trainer, dir=dir)


# Algorithm 1


@pytest.mark.parametrize(
    ("settings", "plan"),
    [
        ({}, "branch_semantic branch_depth presearch backbone finetune"),
        ({"pretrain": True}, "branch_semantic branch_depth presearch backbone pretrain finetune"),
        ({"search_branches": False}, "presearch backbone finetune"),
        ({"search_backbone": False}, "branch_semantic branch_depth presearch finetune"),
        ({"presearch": False}, "branch_semantic branch_depth backbone finetune"),
        (
            {"presearch": False, "search_backbone": False, "backbone": "test_resnet"},
            "branch_semantic branch_depth finetune",
        ),
        ({"method": "together"}, "presearch backbone finetune"),
        ({"method": "proxy"}, "presearch finetune"),
    ],
)
def test_the_stages_of_each_setting_run_and_end_in_its_cells(settings, plan, tmp_path):
    searcher = make(**settings)
    result = run(searcher, tmp_path, epochs=1)
    assert list(result.metrics["seconds"]) == plan.split()
    found = result.architecture
    if "branch_semantic" not in plan:
        hand_made = settings.get("method") is None
        assert (found.branch_cells["semantic"] == HANDMADE) == hand_made
    if settings.get("method") == "proxy":
        assert found.branch_cells["semantic"] == found.branch_cells["depth"] == found.backbone_cells
    assert (found.backbone_cells is None) == ("backbone" in settings)
    again = ms.load(tmp_path).eval()
    image = torch.rand(1, 3, 32, 32)
    for name, prediction in result.network.eval()(image).items():
        assert torch.allclose(again(image)[name], prediction, atol=1e-5)


def test_a_branch_is_searched_on_a_backbone_of_its_own_cells_with_its_own_loss():
    searcher = make(seed=3)
    first = searcher.first_stage()
    assert [task.name for task in first.tasks] == ["semantic"]
    assert set(first.net.searched) == {"backbone", "semantic"}
    assert set(first.net.searched.values()) == {"semantic"}
    make_trainer(1, limit_val_batches=0).fit(first, datamodule=first.train_data(TinyData(searcher.tasks)))
    trained = copy_state(first.net.network.trunk)
    second = searcher.next_stage(first)
    assert second.stage == "branch_depth"
    # The backbone begins anew for the next branch.
    assert not set(differing(trained, copy_state(second.net.network.trunk))) <= {"mean"}
    torch.manual_seed(3)
    fresh = make(seed=3).first_stage().net.network.trunk
    assert not differing(copy_state(fresh), copy_state(second.net.network.trunk))


def test_stages_hand_on_cells_and_weights():
    searcher = make()
    data = TinyData(searcher.tasks)
    stage = searcher.first_stage()
    ended = {}
    while stage is not None:
        if stage.stage == "backbone":
            # Gates and trunk are those of the pre-search, branches and heads those of their searches.
            presearch = ended["presearch"].net
            assert not differing(copy_state(presearch.gates), copy_state(stage.net.gates))
            assert not differing(copy_state(presearch.network.trunk), copy_state(stage.net.network.trunk))
            for name in ("semantic", "depth"):
                branch = ended[f"branch_{name}"].net
                derived = branch.extract(branch.derive())
                own = stage.net.network
                assert not differing(copy_state(derived.heads[name]), copy_state(own.heads[name]))
                assert not differing(copy_state(derived.paths[name]), copy_state(own.paths[name]))
                assert stage.net.derive().branch_cells[name] == branch.derive().branch_cells[name]
        if stage.stage == "finetune":
            supernet = ended["backbone"].net
            derived = supernet.extract(supernet.derive())
            assert not differing(copy_state(derived), copy_state(stage.net))
        arch = getattr(stage.net, "gates", None)
        before = copy_state(stage.net.network.paths) if stage.stage == "backbone" else None
        make_trainer(1, limit_val_batches=0).fit(stage, datamodule=stage.train_data(data))
        assert (arch is not None) == (stage.stage != "finetune")
        if before is not None:
            assert differing(before, copy_state(stage.net.network.paths))  # their weights train
        ended[stage.stage] = stage
        stage = searcher.next_stage(stage)


@pytest.mark.parametrize(("partial", "low", "high"), [(1, 99, 100), (2, 1, 95)])
def test_how_many_weights_fit_is_said(partial, low, high, monkeypatch):
    said = []
    monkeypatch.setattr("mtlsearch.searchers.cell_training.rank_zero_info", said.append)
    searcher = make(partial=partial, channels=8, search_branches=False, presearch=False)
    searcher.next_stage(searcher)
    (line,) = said
    assert line.startswith("finetune: starts from ")
    assert low <= int(line.rsplit(", ", 1)[1].split()[0]) <= high  # derived cells have other shapes


@pytest.mark.parametrize("pretrain", [False, True])
def test_without_inheritance_the_network_begins_anew(pretrain):
    ends = {}
    for inherit in (False, True):
        searcher = make(inherit=inherit, pretrain=pretrain, search_branches=False)
        data, stage, seen = TinyData(searcher.tasks), searcher.first_stage(), []
        while stage.stage != "finetune":
            make_trainer(1, limit_val_batches=0).fit(stage, datamodule=stage.train_data(data))
            seen.append(stage.stage)
            stage = searcher.next_stage(stage)
        ends[inherit] = searcher.carried([*seen, "finetune"], 0), copy_state(stage.net)
        if not inherit and not pretrain:
            torch.manual_seed(searcher.seed)
            fresh = searcher.derive().build(searcher.tasks)
            assert not differing(copy_state(fresh), copy_state(stage.net))
    assert ends[False][0] == (["pretrain", "finetune"] if pretrain else ["finetune"])
    assert ends[True][0] == ["presearch", "backbone", *(["pretrain"] if pretrain else []), "finetune"]
    assert differing(ends[False][1], ends[True][1])


def test_branches_weights_may_be_fixed():
    searcher = make(train_branches=False)
    parts = {name: copy_state(getattr(searcher.net.network, name)) for name in ("paths", "trunk", "heads")}
    make_trainer(1, limit_val_batches=0).fit(
        searcher, datamodule=searcher.train_data(TinyData(searcher.tasks))
    )
    network = searcher.net.network
    moved = {name: bool(differing(parts[name], copy_state(getattr(network, name)))) for name in parts}
    trained = {name: p.grad_fn for name, p in network.paths.named_parameters()}
    assert moved["trunk"]
    assert moved["heads"]
    same = [
        name
        for name in trained
        if torch.equal(parts["paths"][name], dict(network.paths.named_parameters())[name])
    ]
    assert same == list(trained)


def test_the_backbone_takes_the_loss_of_each_task_in_turn():
    searcher = make()
    taken = []
    losses = searcher.losses
    searcher.losses = lambda predictions, batch: (
        taken.append(sorted(predictions)),
        losses(predictions, batch),
    )[1]
    data = TinyData(searcher.tasks, sizes=(16, 4, 4), batch_size=4)
    make_trainer(2, limit_val_batches=0).fit(searcher, datamodule=searcher.train_data(data))
    # Two steps an epoch, an update of the weights and one of the gates in each.
    assert taken == 2 * [["semantic"], ["semantic"], ["depth"], ["depth"]]


def test_a_data_set_a_task():
    tasks = make_tasks()
    parts = {task.name: TinyData([task], batch_size=2, sizes=(8, 2, 2)) for task in tasks}
    data = ms.data.PerTask(parts)
    searcher = make(data.tasks)
    branch = searcher.first_stage()
    own = branch.train_data(data)
    own.setup()
    seen = {key for batch in own.train_dataloader()["weights"] for key in batch}
    assert seen == {"image", "semantic"}
    make_trainer(1).fit(branch, datamodule=branch.train_data(data))
    make_trainer(1).fit(searcher, datamodule=searcher.train_data(data))


# When a search is over


def searching(task="semantic", **settings):
    torch.manual_seed(0)
    tasks = make_tasks(task)
    supernet = CellSupernet(tasks, {"backbone": "backbone"}, {task: HANDMADE}, layout=STACK)
    return CellSearch(supernet, tasks, optimizer=SGD, stage="search", **settings)


def epochs_of(searcher, limit=12, **trainer):
    made = make_trainer(limit, limit_val_batches=0, **trainer)
    made.fit(searcher, datamodule=searcher.train_data(TinyData(searcher.tasks)))
    return made.current_epoch


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({"patience": 3, "min_epochs": 1}, 3),
        ({"patience": 3, "min_epochs": 6}, 6),
        ({"patience": 0}, 12),
        ({"patience": 0, "max_steps": 4}, 4),
    ],
)
def test_a_search_stops_when_the_cells_do_not_change(settings, epochs):
    still = partial(torch.optim.SGD, lr=0.0)
    assert epochs_of(searching(arch_optimizer=still, **settings)) == epochs


def test_a_changing_cell_starts_the_count_again():
    class Restless(CellSearch):
        def on_train_epoch_end(self):
            if self.current_epoch == 2:
                logits = self.net.gates["backbone"]["normal"].logits
                with torch.no_grad():
                    logits.copy_(torch.randn_like(logits))
            super().on_train_epoch_end()

    searcher = searching(patience=3, min_epochs=1, arch_optimizer=partial(torch.optim.SGD, lr=0.0))
    searcher.__class__ = Restless
    assert epochs_of(searcher) == 6


@pytest.mark.parametrize(("skips", "epochs"), [(2, 2), (3, 4)])
def test_a_pre_search_stops_at_more_than_t_skips(skips, epochs):
    searcher = searching(
        max_skips=2, min_epochs=2, patience=0, arch_optimizer=partial(torch.optim.SGD, lr=0.0)
    )
    with torch.no_grad():
        for kind in ("normal", "reduce"):
            logits = searcher.net.gates["backbone"][kind].logits.fill_(0)
            logits[:, OPERATIONS.index("sep_conv_3x3")] = 1
            logits[: skips + (kind == "reduce") * 9, OPERATIONS.index("skip_connect")] = 2
    # Edges into the first nodes: two into node 2, three into node 3.
    found = sum(name == "skip_connect" for name, _ in searcher.net.gates["backbone"]["normal"].derive())
    assert found == skips
    assert epochs_of(searcher, limit=4) == (2 if skips > 2 else 4)


def test_a_stage_that_has_stopped_is_not_gone_on_with(tmp_path):
    settings = {"patience": 2, "min_epochs": 1, "arch_optimizer": partial(torch.optim.SGD, lr=0.0)}
    searcher = searching(**settings)
    trainer = make_trainer(9, limit_val_batches=0)
    fit_stage(searcher, TinyData(searcher.tasks), trainer, tmp_path)
    assert trainer.current_epoch == 2
    again = searching(**settings)
    steps = []
    again.on_train_batch_start = lambda *_: steps.append(1)
    fit_stage(again, TinyData(again.tasks), make_trainer(9, limit_val_batches=0), tmp_path)
    assert not steps
    assert not differing(copy_state(searcher), copy_state(again))


@pytest.mark.parametrize("stop", [("branch_depth", 1), ("presearch", 1), ("backbone", 1), ("finetune", 1)])
def test_a_run_that_was_killed_ends_with_the_same_bytes(stop, tmp_path, whole):
    with pytest.raises(Killed):
        run(make(pretrain=True), tmp_path, stop=stop)
    run(make(pretrain=True), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (tmp_path / "architecture.json").read_text() == (whole / "architecture.json").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    dir = tmp_path_factory.mktemp("whole")
    run(make(pretrain=True), dir)
    return dir


# Its relaxations


def test_second_order_is_the_gradient_through_a_step():
    """On a quadratic toy, against autograd through the inner step (DARTS Eq. 6), in fp64."""

    class Toy(nn.Module):
        gates = nn.ModuleDict()

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.3, -0.7]))
            self.a = nn.Parameter(torch.tensor([0.5, 0.2]))

        def arch_parameters(self):
            return [self.a]

    class Unrolled(CellSearch):
        def terms(self, group, batch, batch_index):
            return {"toy": loss(self.net.w, self.net.a, batch["x"])}

        def optimizers(self):
            return self.made

        def seed_step(self, batch_index, group):
            pass

    def loss(w, a, x):
        return ((w * a.sigmoid() - x) ** 2).sum() + (w.prod() * a.sum()) ** 2

    toy = Toy().double()
    searcher = searching(second_order=True)
    searcher.net = toy
    searcher.__class__ = Unrolled
    searcher.made = [torch.optim.SGD([toy.w], lr=0.1), torch.optim.SGD([toy.a], lr=1.0)]
    searcher.parameters_of = lambda group: [toy.w] if group == "weights" else [toy.a]
    train, val = torch.tensor([0.1, 0.9]).double(), torch.tensor([0.4, -0.2]).double()
    searcher._weights_batch = {"x": train}
    w, a = toy.w.detach().clone(), toy.a.detach().clone()
    searcher.arch_step({"x": val}, 0)
    weight, arch = w.clone().requires_grad_(), a.clone().requires_grad_()
    (step,) = torch.autograd.grad(loss(weight, arch, train), weight, create_graph=True)
    (exact,) = torch.autograd.grad(loss(weight - 0.1 * step, arch, val), arch)
    (first,) = torch.autograd.grad(loss(w, arch, val), arch)
    found = a - toy.a.detach()
    assert torch.equal(toy.w, w)
    assert torch.allclose(found, exact, rtol=1e-3)
    assert not torch.allclose(first, exact, rtol=1e-1)


@pytest.mark.parametrize(
    "settings",
    [
        {"second_order": True},
        {"relaxation": "concrete"},
        {"partial": 2, "channels": 8},
        {"entropy_weight": 5.0},
        {"recompute": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_of_the_search_fulfil_the_contract(settings):
    check_searcher(lambda tasks: make(tasks, **settings), TinyData(make_tasks("depth")))


def test_mtnas_fulfils_the_contract():
    check_searcher(make, TinyData(make_tasks("semantic", "depth")))


def test_the_entropy_term_is_the_mean_over_all_edges():
    searcher = searching(entropy_weight=10.0)
    searcher.log = lambda *_, **__: None
    gates = searcher.net.gates["backbone"]
    with torch.no_grad():
        gates["normal"].logits.zero_()  # log 8 at every edge
        gates["reduce"].logits.zero_()[:, 3] = 1000.0  # decided
    term = searcher.regularization(0.5)["entropy"]
    assert term.item() == pytest.approx(10 * np.log(8) / 2)
    searcher.entropy_weight = 0.0
    assert searcher.regularization(0.5) == {}


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "resnet18"}, "'?resnet18'? cannot be given beside it.*presearch=false"),
        ({"method": "darts"}, "method must be one of two_stage, together, proxy, not 'darts'"),
        ({"branches": {"depth": HANDMADE}}, "leave branches= out, or set search_branches=false"),
        ({"method": "proxy", "presearch": False}, "method=proxy searches all cells at once"),
        ({"method": "together", "search_branches": False}, "method=together searches all cells at once"),
        (
            {"search_branches": False, "branches": {"depths": HANDMADE}},
            "branches names 'depths', but the tasks are semantic, depth",
        ),
        ({"partial": 3}, "channels must be a multiple of 12"),
        ({"relaxation": "hard"}, "relaxation must be one of"),
        ({"patience": -1}, "patience must be"),
        ({"temperature": 0.01}, "temperatures must fall and stay above 0, not from 0.01 to 0.1"),
        ({"second_order": True, "accumulate": 2}, "leave accumulate at 1"),
        ({"reductions": [0]}, "reductions must be numbers of cells"),
    ],
)
def test_a_wrong_argument_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_no_task_is_called_backbone():
    with pytest.raises(ValueError, match="cannot be called 'backbone'"):
        make([ms.tasks.depth("backbone")])


# BatchNorm over several processes


def test_synchronised_norms_evaluate_as_before_and_mixed_cells_keep_theirs():
    searcher = make()
    net = searcher.net.eval()
    image = torch.rand(2, 3, 32, 32)
    before, state = net(image), copy_state(net)
    convert(net)
    kinds = {type(norm) for norm in net.network.trunk.stem.modules() if hasattr(norm, "running_mean")}
    assert kinds == {nn.SyncBatchNorm}
    mixed = [part for part in net.modules() if isinstance(part, MixedCell)]
    assert mixed and not any(isinstance(part, nn.SyncBatchNorm) for cell in mixed for part in cell.modules())
    assert not differing(state, copy_state(net))
    for name, prediction in net(image).items():
        assert torch.equal(prediction, before[name])


def test_nothing_is_synchronised_on_a_cpu():
    searcher = make()
    make_trainer(1, limit_val_batches=0).fit(
        searcher, datamodule=searcher.train_data(TinyData(searcher.tasks))
    )
    assert not any(isinstance(part, nn.SyncBatchNorm) for part in searcher.modules())
