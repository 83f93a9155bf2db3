"""A whole search: what it writes, how it goes on after it was stopped, and what a run's folder may hold."""

import json
import pickle
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

import mtlsearch as ms
from mtlsearch.data import Collate
from mtlsearch.namespace import pl
from mtlsearch.search import read_architecture
from tiny import Killed, Stop, TinyData, ToySearcher, make_tasks, make_trainer

FILES = {"architecture.json", "model.safetensors", "metrics.json", "metrics.csv"}
SPENT = {"seconds", "images", "arch_images", "carried", "budget"}


def two(stage):
    return make_trainer(2)


def mtlnas(**arguments):
    settings = {"within_stage": False, "samples": 3, "relaxation": "concrete", **arguments}
    return ms.MTLNAS(make_tasks(), "test_resnet", **settings)


def find(dir, searcher=None, data=None, trainer=two):
    searcher = searcher or mtlnas()
    return ms.search(searcher, data or TinyData(searcher.tasks), trainer=trainer, dir=dir)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run, and its result."""
    dir = tmp_path_factory.mktemp("run")
    return dir, find(dir)


def outputs(dir):
    return [(dir / name).read_bytes() for name in ("architecture.json", "model.safetensors")]


# What it writes


def test_the_folder_holds_what_a_run_promises(run):
    dir, result = run
    found = {path.name for path in dir.iterdir()}
    assert found == FILES | {"single_task", "search"}
    for stage in ("single_task", "search"):
        assert [path.name for path in (dir / stage).iterdir()] == ["last.ckpt"]
    metrics = json.loads((dir / "metrics.json").read_text())
    assert metrics == result.metrics
    assert set(metrics) == {"val", "test", "supernet", "samples", "directions", "breakdowns", "cost", *SPENT}
    names = {task.name: set(task.metrics) for task in make_tasks()}
    for values in (metrics["val"], metrics["test"], *metrics["supernet"].values(), *metrics["samples"]):
        assert {task: set(values[task]) for task in names} == names
        assert set(values) == {*names, "loss"}
    assert set(metrics["supernet"]) == {"val", "test"} and len(metrics["samples"]) == 3
    assert {task: set(values) for task, values in metrics["directions"].items()} == names
    assert list(metrics["seconds"]) == ["single_task", "search"]
    assert set(metrics["cost"]) == {"params", "backbone_params", "macs", "latency_ms", "per_task"}
    rows = (dir / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [
        [stage, epoch] for stage in ("single_task", "search") for epoch in ("0", "1")
    ]


def test_the_numbers_are_the_networks_own(run):
    result = run[1]
    data = TinyData()
    data.setup()
    task = data.tasks[1]
    total = count = 0
    with torch.no_grad():
        for sample in data.test_dataset:
            batch = data.collate([sample])
            amount, number = task.loss(result.network(batch["image"], ["depth"])["depth"], batch["depth"])
            total, count = total + amount, count + number
    assert result.metrics["test"]["depth"]["absolute_error"] == pytest.approx(
        (total / count).item(), rel=1e-4
    )
    assert result.metrics["cost"]["params"] == sum(p.numel() for p in result.network.parameters())


def test_the_network_comes_back_from_two_files(run, tmp_path):
    dir, result = run
    for name in ("architecture.json", "model.safetensors"):
        (tmp_path / name).write_bytes((dir / name).read_bytes())
    network = ms.load(tmp_path)
    assert not network.training and not result.network.training
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        for task, prediction in network(image).items():
            assert torch.equal(prediction, result.network(image)[task])
    assert read_architecture(tmp_path) == result.architecture
    assert not [name for name in load_file(dir / "model.safetensors") if "gate" in name or "logit" in name]


def test_a_finished_run_returns_at_once(run):
    dir, result = run

    def never(stage):
        raise AssertionError(f"a Trainer was made for {stage}")

    before = {path: path.stat().st_mtime_ns for path in dir.rglob("*")}
    again = find(dir, trainer=never)
    assert again.architecture == result.architecture and again.metrics == result.metrics
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.network(image)["depth"], result.network(image)["depth"])
    assert {path: path.stat().st_mtime_ns for path in dir.rglob("*")} == before


def test_a_baseline_runs_alike(tmp_path):
    tasks = make_tasks()
    result = find(tmp_path, ms.SingleTask(tasks, "test_resnet"))
    assert set(result.metrics) == {"val", "test", "directions", "breakdowns", "cost", *SPENT}
    assert result.architecture.edges == [] and {path.name for path in tmp_path.iterdir()} >= FILES
    parts = [values["params"] for values in result.metrics["cost"]["per_task"].values()]
    assert sum(parts) == result.metrics["cost"]["params"]


def test_no_test_data_is_no_error(tmp_path):
    class TwoSplits(pl.LightningDataModule):
        def __init__(self):
            super().__init__()
            self.data = TinyData(make_tasks(plain=True))
            self.data.setup()
            self.train_dataloader, self.val_dataloader = (
                self.data.train_dataloader,
                self.data.val_dataloader,
            )

    class Given(pl.LightningDataModule):
        def train_dataloader(self):
            return TwoSplits().train_dataloader()

        def val_dataloader(self):
            return TwoSplits().val_dataloader()

    result = find(tmp_path, ToySearcher(), Given())
    assert "val" in result.metrics and "test" not in result.metrics
    assert set(result.metrics["supernet"]) == {"val"}


def test_a_foreign_batch_format_holds_to_the_end(tmp_path):
    def as_tuple(collate, samples):
        batch = collate(samples)
        return tuple(batch[key] for key in ("image", "semantic", "depth"))

    class Foreign(TinyData):
        def setup(self, stage=None):
            super().setup(stage)
            self.collate = partial(as_tuple, Collate({task.name: task.target for task in self.tasks}))

    def unpack(batch):
        return dict(zip(("image", "semantic", "depth"), batch))

    tasks = make_tasks(plain=True)
    plain = find(tmp_path / "a", ToySearcher(tasks))
    foreign = find(tmp_path / "b", ToySearcher(tasks, unpack=unpack), Foreign(tasks))
    for split in ("val", "test", "supernet"):
        assert foreign.metrics[split] == plain.metrics[split]
    assert outputs(tmp_path / "a") == outputs(tmp_path / "b")


# Stopped and resumed


@pytest.mark.parametrize(
    "stage, epochs", [("single_task", 0), ("single_task", 1), ("search", 0), ("search", 1), ("evaluate", 0)]
)
def test_a_run_that_was_stopped_ends_with_the_same_bytes(run, tmp_path, stage, epochs):
    def stopping(name):
        if name == stage == "evaluate":
            raise Killed
        return make_trainer(2, callbacks=[Stop(epochs)] if name == stage else [])

    with pytest.raises(Killed):
        find(tmp_path, trainer=stopping)
    assert not (tmp_path / "metrics.json").exists()
    torch.manual_seed(5)
    trained = []

    def watching(name):
        trained.append(name)
        return make_trainer(2)

    find(tmp_path, trainer=watching)
    assert trained == ["single_task", "search", "evaluate"]
    assert outputs(tmp_path) == outputs(run[0])
    # Times differ, curves and metrics do not.
    metrics = [json.loads((dir / "metrics.json").read_text()) for dir in (tmp_path, run[0])]
    for values in metrics:
        del values["seconds"], values["cost"]["latency_ms"]
    assert metrics[0] == metrics[1]
    assert (tmp_path / "metrics.csv").read_text() == (run[0] / "metrics.csv").read_text()


def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint(tmp_path):
    class Breaks(TinyData):
        """Its third epoch has an image that is not finite."""

        def train_dataloader(self):
            loader = super().train_dataloader()
            collate = loader.collate_fn

            def broken(samples):
                batch = collate(samples)
                if self.train_dataset.epoch == 2:
                    batch["image"][:, :, -1, -1] = torch.nan
                return batch

            loader.collate_fn = broken
            return loader

    searcher = ToySearcher()
    message = r"'semantic' is nan.*epoch 2, batch 0, in the update of the weights"
    with pytest.raises(ValueError, match=message):
        find(tmp_path, searcher, Breaks(searcher.tasks), trainer=lambda stage: make_trainer(4))
    content = torch.load(tmp_path / "search" / "last.ckpt", weights_only=True)
    assert content["epoch"] < 2
    assert all(value.isfinite().all() for value in content["state_dict"].values())
    result = find(tmp_path, ToySearcher(), trainer=lambda stage: make_trainer(4))
    assert result.metrics["val"]["loss"] > 0


# Folders that are not what they should be


@pytest.fixture
def copied(run, tmp_path):
    for name in ("architecture.json", "model.safetensors"):
        (tmp_path / name).write_bytes((run[0] / name).read_bytes())
    return tmp_path


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["architecture.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "pickle", "torch"])
def test_a_damaged_folder_is_an_error_that_names_the_file_and_runs_nothing(copied, name, damage):
    path, trace = copied / name, copied / "trace"
    if damage == "missing":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "pickle":
        path.write_bytes(pickle.dumps(Bomb(trace)))
    else:
        torch.save({"state": Bomb(trace)}, path)
    with pytest.raises(ValueError, match=name):
        ms.load(copied)
    assert not trace.exists()


def test_weights_of_another_architecture_are_refused(copied):
    state = load_file(copied / "model.safetensors")
    first = next(name for name, value in state.items() if len(value.shape) and len(value) > 1)
    save_file({**state, first: state[first][:1]}, copied / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit architecture\.json"):
        ms.load(copied)
    del state[first]
    save_file(state, copied / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit architecture\.json"):
        ms.load(copied)


def edited(dir, **changes):
    path = dir / "architecture.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_unknown_backbone_argument_is_a_value_error(copied):
    edited(copied, backbone={"name": "test_resnet", "arguments": {"colour": 3}})
    with pytest.raises(ValueError, match=r"backbone .*test_resnet.* cannot be built: .*colour"):
        ms.load(copied)


def test_an_unknown_kind_or_version_says_so(copied):
    edited(copied, kind="unheard")
    with pytest.raises(ValueError, match=r"Unknown kind.*'unheard'.*Import the module that defines it"):
        ms.load(copied)
    edited(copied, kind="fusion", version=7)
    with pytest.raises(ValueError, match="version 7, not 1"):
        ms.load(copied)


def test_a_checkpoint_that_an_architecture_names_is_not_read(copied):
    """timm would unpickle it."""
    torch.save({"state": Bomb(copied / "trace")}, copied / "checkpoint.pth")
    arguments = {"checkpoint_path": str(copied / "checkpoint.pth"), "pretrained": True}
    edited(copied, backbone={"name": "test_resnet", "arguments": arguments})
    ms.load(copied)
    assert not (copied / "trace").exists()


VALUES = [None, 5, -1, "x", [], {}, [5], [None], ["x"], [{}], [[]], {"a": 1}, {"semantic": 3}, True]


@pytest.mark.parametrize("field", ["tasks", "backbone", "nodes", "activation", "candidates", "edges"])
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_field_of_nonsense_is_a_value_error(copied, field, value):
    edited(copied, **{field: value})
    try:
        read_architecture(copied).build()
    except ValueError as error:
        assert str(error)


@pytest.mark.parametrize("list_of", ["nodes", "candidates", "edges"])
@pytest.mark.parametrize("value", [None, -1, 1000, 1.5, "x", [], {}, True], ids=repr)
def test_an_entry_of_nonsense_is_a_value_error(copied, list_of, value):
    content = json.loads((copied / "architecture.json").read_text())
    assert content[list_of]
    for key in content[list_of][0]:
        if key == "probability" or (key == "stage" and type(value) is int):
            continue
        entries = [{**content[list_of][0], key: value}, *content[list_of][1:]]
        with pytest.raises(ValueError):
            edited(copied, **{list_of: entries})
            read_architecture(copied).build()


def test_own_tasks_have_to_be_handed_in(tmp_path):
    tasks = make_tasks(plain=True)
    result = find(tmp_path, ms.SingleTask(tasks, "test_resnet"))
    with pytest.raises(ValueError, match=r"\['semantic', 'depth'\] are not built-in ones.*tasks="):
        ms.load(tmp_path)
    with pytest.raises(ValueError, match=r"is for tasks \['semantic', 'depth'\], not \['depth'\]"):
        ms.load(tmp_path, tasks[1:])
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ms.load(tmp_path, tasks)(image)["depth"], result.network(image)["depth"])
