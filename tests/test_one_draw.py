"""AdaShare with a data set a task: one draw of gates serves all parts of a step."""

import pytest
import torch

import mtlsearch as ms
from tiny import SGD, TinyData, make_tasks, make_trainer


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return ms.backbones.load("test_resnet")


def steps_of(backbone, **settings):
    """The gates of each pass of a step, for every step of two epochs; REINFORCE's term is checked on the way."""
    tasks = make_tasks("semantic", "depth", plain=True)
    datasets = {task.name: TinyData([task], batch_size=3, sizes=(6, 2, 2)) for task in tasks}
    data = ms.data.PerTask(datasets, together=True)
    searcher = ms.AdaShare(tasks, backbone, warmup=0.0, curriculum=0.0, optimizer=SGD, **settings)
    steps, terms = [], searcher.terms

    def gates_of(_, arguments):
        steps[-1].append(torch.stack([torch.stack(list(row.values())) for row in arguments[2]]))

    def watched(group, batch, batch_index):
        steps.append([])
        baseline = searcher.baseline.clone()
        found = terms(group, batch, batch_index)
        if group == "arch" and searcher.estimator == "reinforce":
            gain = (searcher._loss - (searcher._loss if baseline.isnan() else baseline)).item()
            images = torch.cat([part["image"] for part in batch["parts"]])
            by_hand = gain * log_probability(searcher.net, steps[-1], images).item()
            assert found["policy"].item() == pytest.approx(by_hand, rel=1e-5, abs=1e-7)
        return found

    searcher.net.network.register_forward_pre_hook(gates_of)
    searcher.terms = watched
    make_trainer(2, limit_val_batches=0).fit(searcher, datamodule=searcher.train_data(data))
    return steps


def log_probability(net, gates, images):
    """Of the gates that the passes had: of the one draw, or the mean over the images of all passes."""
    if net.network.predictor is None:
        p = torch.stack(list(net.logits)).sigmoid()
        return torch.where(gates[0] > 0, p, 1 - p).log().sum()
    normalize = net.network.paths.backbone.normalize
    p = net.network.predictor(normalize(images)).sigmoid()  # (images, L, K)
    drawn = torch.cat(gates, dim=-1).movedim(-1, 0)
    return torch.where(drawn > 0, p, 1 - p).log().sum((1, 2)).mean()


@pytest.mark.parametrize("estimator", ["gumbel", "reinforce"])
def test_the_parts_of_a_step_have_the_same_gates(backbone, estimator):
    steps = steps_of(backbone, estimator=estimator)
    assert all(torch.equal(*passes) for passes in steps)
    assert len({tuple(passes[0].flatten().tolist()) for passes in steps}) == len(steps)  # a step has its own


def test_a_policy_of_images_draws_for_each_part(backbone):
    assert not any(
        torch.equal(*passes) for passes in steps_of(backbone, estimator="reinforce", instance=True)
    )


def test_a_pass_on_its_own_draws_anew(backbone):
    net = ms.AdaShare(make_tasks("semantic", "depth", plain=True), backbone).net.train()
    image = torch.rand(2, 3, 32, 32)

    def drawn():
        return torch.stack([gate for row in net._gates(image) for gate in row.values()])

    assert not torch.equal(drawn(), drawn())
    with net.one_draw():
        first = drawn()
        assert torch.equal(first, drawn())
    assert not torch.equal(first, drawn())
