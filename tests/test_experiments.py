"""Every experiment file composes to what its searcher and its data set take, and a scaled one runs."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import hydra
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

import mtlsearch as ms
from mtlsearch import run as command
from mtlsearch import rundir
from mtlsearch.searchers.genotypes import PUBLISHED_LAYOUT

FOLDER = command.CONF / "experiment"
NAMES = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))
COMPARISONS = ("scenes_3task", "scenes_detection", "camvid_edges", "camvid_detection")
TINY = [
    "backbone=timm",
    "backbone.name=test_resnet",
    "backbone.pretrained=false",
    "backbone.output_stride=null",
]


def compose(name, *overrides):
    with hydra.initialize_config_dir(str(command.CONF), version_base="1.3"):
        return hydra.compose("run", [f"experiment={name}", *overrides], return_hydra_config=True)


def settings_of(config):
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    return OmegaConf.to_container(config, resolve=True)


def jobs(config):
    """The settings of each job of a sweep, or the one empty list of a run alone."""
    params = config.hydra.sweeper.params or {}
    overrides = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    choices = [[f"{o.key_or_group}={v}" for v in o.sweep_string_iterator()] for o in overrides]
    return [list(job) for job in product(*choices)]


def test_all_tables_are_there_in_both_sizes():
    tables = [f"table{n}" for n in range(1, 6)] + ["s1", "s2", "s3", "figure_s1", "single_task"]
    assert {f"mtlnas/{size}{table}" for size in ("", "scenes_") for table in tables} <= set(NAMES)
    ablations = [
        f"table5_{name}" for name in ("no_curriculum", "no_sparsity", "no_sharing", "instance", "rl")
    ]
    tables = [*(f"table{n}" for n in (1, 2, 3, 4, 6)), *ablations]
    assert {f"adashare/{size}{table}" for size in ("", "scenes_") for table in tables} <= set(NAMES)
    assert {f"adashare/table{n}_others" for n in range(1, 5)} <= set(NAMES)
    rows = [f"table1_{name}" for name in ("no_branch_search", "no_backbone_search", "pretrain", "random")]
    rows += ["table1_together", "table1_proxy", "table2_presearch", "table2_backbone_search"]
    assert {f"mtnas/{size}{row}" for size in ("", "scenes_") for row in rows} <= set(NAMES)
    assert {
        f"mtnas/{name}"
        for name in ("table1", "table1_ssd", "table1_fcn", "table1_mtl", "table1_triplenet", "table3")
    } <= set(NAMES)
    assert {"demo", "camvid", "camvid_detection", "nyuv2_samples", "adashare/small", "mtnas/small"} <= set(
        NAMES
    )


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_makes_its_data_and_its_searcher_in_every_job(name, tmp_path):
    config = compose(name)
    swept = jobs(config)
    assert (config.hydra.mode == RunMode.MULTIRUN) == (len(swept) > 1)
    for folder in ("a", "b"):  # classes, where it is read as folders of classes
        (tmp_path / folder).mkdir()
    missing = OmegaConf.missing_keys(OmegaConf.create(settings_of(compose(name))))
    given = [f"{key}={tmp_path}" for key in missing if key.endswith(".root")]
    # MTNAS searches its backbone.
    given += TINY if config.backbone else []
    if name.startswith("compare/"):  # its systems: below
        return
    for job in (swept[0], swept[-1])[: len(swept)]:
        settings = settings_of(compose(name, *given, *job))
        for override in job:
            key, _, value = override.partition("=")
            assert str(OmegaConf.select(OmegaConf.create(settings), key)) == value
        datamodule, searcher = command.make(settings)
        assert [task.name for task in datamodule.tasks] == settings["tasks"]
        if isinstance(searcher, ms.MTNAS):
            assert all({stage, stage.partition("_")[0]} & set(settings["epochs"]) for stage in searcher.plan)
            continue
        if isinstance(searcher, ms.RandomSearch):
            assert "train" in settings["epochs"]
            continue
        if not isinstance(settings["epochs"], dict):  # of every stage
            continue
        stages = {searcher.first_stage().stage, searcher.stage}
        stages |= {"retrain"} if isinstance(searcher, ms.AdaShare) else set()
        assert stages == set(settings["epochs"]) or (
            name.endswith("small") and stages < set(settings["epochs"])
        )


SHARES = {"mtlnas": {"search": 1 / 2}, "den": {"search": 4 / 5}, "adashare": {"search": 0}}
SHARES["mtnas"] = SHARES["darts"] = dict.fromkeys(("branch", "presearch", "backbone", "pretrain"), 0)
"""The part of its images with which a stage trains the finished weights of each of two tasks, if not all."""
OF_CELLS = {"mtnas", "darts", "random_cells"}
SYSTEMS = sorted(path.stem for path in (command.CONF / "system").glob("*.yaml"))


def test_comparisons_name_every_system():
    swept = {name: str(compose(f"compare/{name}").hydra.sweeper.params["system"]) for name in COMPARISONS}
    listed = {name: {part.strip() for part in systems.split(",")} for name, systems in swept.items()}
    assert listed["scenes_3task"] == listed["camvid_edges"] == set(SYSTEMS) - {"triplenet"}
    assert listed["scenes_detection"] == listed["camvid_detection"] == set(SYSTEMS)


@pytest.mark.parametrize("name", COMPARISONS)
@pytest.mark.parametrize("system", ["hard_sharing", "mtnas"])
def test_comparisons_have_one_budget_and_optimiser(name, system, tmp_path):
    given = [f"dataset.root={tmp_path}"] if name.startswith("camvid") else []
    settings = settings_of(compose(f"compare/{name}", f"system={system}", *given))
    datamodule, _ = command.make(settings)
    assert [task.name for task in datamodule.tasks] == settings["tasks"]
    stage = {"mtnas": "finetune"}.get(system, "train")
    assert settings["epochs"][stage] == settings["budget"] == settings["trainer"]["check_val_every_n_epoch"]
    assert settings["searcher"]["optimizer"] == settings["optimizer"]


@pytest.mark.parametrize("system", [name for name in SYSTEMS if name not in ("random_1", "random_2")])
def test_a_system_has_the_budget_of_all(system):
    settings = settings_of(compose("compare/scenes_detection", f"system={system}"))
    assert (settings["backbone"] == {}) == (system in OF_CELLS)
    assert settings["searcher"]["optimizer"] == settings["optimizer"]
    assert not settings["searcher"].get("inherit")  # or the search's images would count
    shares = SHARES.get(system, {})
    epochs = {stage: number * shares.get(stage, 1) for stage, number in settings["epochs"].items() if number}
    assert sum(epochs.values()) == pytest.approx(settings["budget"], rel=0.01)
    tiny = [] if system in OF_CELLS else TINY
    _, searcher = command.make(settings_of(compose("compare/scenes_detection", f"system={system}", *tiny)))
    stage = searcher.first_stage().stage
    assert {stage, stage.partition("_")[0]} & set(settings["epochs"])


def test_a_share_of_the_budget_is_whole_epochs():
    shares = {
        budget: settings_of(compose("compare/scenes_detection", "system=mtnas", f"budget={budget}"))["epochs"]
        for budget in (1, 24)
    }
    assert shares[1]["branch"] == shares[1]["finetune"] == 1
    assert (shares[24]["branch"], shares[24]["backbone"], shares[24]["finetune"]) == (3, 6, 24)


@pytest.mark.parametrize(
    "searcher",
    ["single_task", "hard_sharing", "cross_stitch", "sluice", "nddr", "mtan", "den"],
)
def test_other_systems_have_the_settings_of_adashare(searcher, tmp_path):
    given = [f"searcher={searcher}", f"dataset.root={tmp_path}", *TINY]
    ours = settings_of(compose("adashare/table1", f"dataset.root={tmp_path}"))
    settings = settings_of(compose("adashare/table1_others", *given))
    for key in ("tasks", "weights", "head", "dataset", "trainer"):
        assert settings[key] == ours[key]
    optimizer = settings["searcher"]["optimizer"]
    optimizer.pop("fused", None)  # faster, and no other numbers
    assert optimizer == ours["searcher"]["optimizer"]
    assert settings["epochs"] == ours["epochs"]["retrain"]
    _, made = command.make(settings)
    assert [task.name for task in made.tasks] == ["semantic", "normals"]


def test_the_papers_numbers():
    table1, table2, table3 = (settings_of(compose(f"mtlnas/table{n}")) for n in (1, 2, 3))
    assert {table["searcher"]["fusion_bn_init"] for table in (table1, table2, table3)} == {"standard"}
    assert settings_of(compose("mtlnas/scenes_table5"))["searcher"]["fusion_bn_init"] == "standard"
    for table in (table1, table2, table3):
        searcher = table["searcher"]
        assert searcher["entropy_weight"] == 10 and searcher["init_w_ti"] == 1
        assert (searcher["relaxation"], searcher["discretization"]) == ("concrete", "stochastic")
        assert (searcher["optimizer"]["momentum"], searcher["optimizer"]["weight_decay"]) == (0.9, 0.00025)
        assert (searcher["arch_optimizer"]["lr"], searcher["arch_optimizer"]["weight_decay"]) == (
            0.003,
            0.001,
        )
    assert [t["searcher"]["optimizer"]["lr"] for t in (table1, table2, table3)] == [0.001, 0.00025, 0.001]
    steps = [table["epochs"]["search"] * (795 // 20) for table in (table1, table2)]
    assert steps == pytest.approx([20_000, 30_000], rel=0.005)
    assert len(jobs(compose("mtlnas/table5"))) == 8
    assert len(jobs(compose("mtlnas/s3"))) == 8
    pairs = {
        relaxation: settings_of(compose("mtlnas/table4", f"searcher.relaxation={relaxation}"))["searcher"]
        for relaxation in ("deterministic", "concrete")
    }
    assert pairs["deterministic"]["discretization"] == "deterministic"
    assert pairs["concrete"]["discretization"] == "stochastic"


def test_the_numbers_of_adashare():
    tables = {n: settings_of(compose(f"adashare/table{n}")) for n in (1, 2, 3, 4)}
    weights = {
        n: (t["searcher"]["sparsity_weight"], t["searcher"]["sharing_weight"]) for n, t in tables.items()
    }
    assert weights == {1: (0.05, 0.05), 2: (0.01, 0.1), 3: (0.001, 0.05), 4: (0.001, 0.005)}
    losses = {n: [t["weights"][task] for task in t["tasks"]] for n, t in tables.items()}
    assert losses == {1: [1, 20], 2: [1, 20], 3: [1, 20, 3], 4: [1, 3, 2, 7, 7]}
    for table in tables.values():
        searcher = table["searcher"]
        assert (searcher["samples"], searcher["temperature"], table["dataset"]["batch_size"]) == (8, 5, 16)
    epochs, searcher = tables[3]["epochs"]["search"], tables[3]["searcher"]
    warm = round(epochs * searcher["warmup"])
    assert warm * 24 == pytest.approx(4000, rel=0.01)
    assert (warm + (epochs - warm) / 2) * 24 == pytest.approx(20_000, rel=0.01)
    assert (epochs - warm) / 2 * searcher["curriculum"] == pytest.approx(16, rel=0.05)  # a block an epoch


def test_the_numbers_of_mtnas():
    table1, table3, proxy = (
        settings_of(compose(f"mtnas/{name}")) for name in ("table1", "table3", "table1_proxy")
    )
    for table in (table1, table3):
        searcher = table["searcher"]
        layout = {key: searcher[key] for key in ("channels", "cells", "reductions", "detection_cells")}
        assert layout == PUBLISHED_LAYOUT
        assert (searcher["partial"], searcher["patience"], searcher["max_skips"]) == (4, 10, 2)
        assert searcher["max_steps"] == {"branch": 5000, "presearch": 10_000, "backbone": 10_000}
        rates = [searcher[key]["lr"] for key in ("optimizer", "finetune_optimizer")]
        assert rates == [0.1, 0.01]
    most = table1["trainer"]["limit_train_batches"]
    # By images to train on, half of them for the weights, and what a search may take.
    for table, images, stage, steps in (
        (table1, 120_000, "branch_detection", 5000),
        (table1, 10_000, "branch_semantic", 5000),
        (table1, 120_000, "backbone", 10_000),
        (table3, 5237, "branch_detection", 5000),
        (table3, 2975, "branch_semantic", 5000),
        (table3, 5237, "backbone", 10_000),
    ):
        epoch = min(images // 2 // 32, most)
        assert steps <= table["epochs"][stage] * epoch < steps + 1.1 * epoch, stage
    assert (proxy["searcher"]["method"], proxy["searcher"]["partial"], proxy["searcher"]["max_skips"]) == (
        "proxy",
        1,
        None,
    )


def test_the_boxes_of_mtnas_and_of_its_baseline_have_their_heads(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name, head in {
        "table1": {"name": "ssd", "norm": True},
        "table1_mtl": {"name": "ssd", "norm": False, "fpn": 256, "extra": 3},
    }.items():
        settings = settings_of(compose(f"mtnas/{name}"))
        for key in OmegaConf.missing_keys(OmegaConf.create(settings)):
            *path, last = key.split(".")
            node = settings
            for part in path:
                node = node[part]
            node[last] = str(tmp_path)
        boxes, pixels = command.make_datamodule(settings).tasks
        assert boxes.spec["arguments"]["head"] == head
        assert (boxes.target.num_classes, len(pixels.target.class_names)) == (4, 16)


OTHER_ROWS = {
    "single_task searcher=hard_sharing searcher.optimizer.nesterov=false epochs.train=506": 506,
    "single_task searcher=cross_stitch searcher.stitch_lr_factor=100 epochs.train=253": 506,
    "single_task searcher=nddr searcher.fusion_lr_factor=100 epochs.train=253": 506,
    "single_task searcher=nddr searcher.optimizer.lr=0.00025 epochs.single_task=380 epochs.train=380": 760,
    "s1": 506,
    "s1 searcher=nddr_supernet searcher.fusion_lr_factor=100": 506,
    "table3_single_task searcher=cross_stitch epochs.train=4": 8,
    "table3_single_task searcher=hard_sharing searcher.optimizer.nesterov=false epochs.train=8": 8,
    "scenes_single_task searcher=hard_sharing epochs.train=14": 14,
    "scenes_single_task searcher=cross_stitch epochs.single_task=7 epochs.train=7": 14,
    "scenes_single_task searcher=nddr epochs.single_task=7 epochs.train=7 tasks=[object_soft,scene_soft]": 14,
    "scenes_s1 searcher=nddr_supernet": 14,
}


@pytest.mark.parametrize("command_line", OTHER_ROWS)
def test_rows_of_other_systems_have_the_commands_that_comments_name(command_line, tmp_path):
    """They train as long as the searches, with the searches' optimiser."""
    name, *overrides = command_line.split()
    given = [] if name.startswith("scenes") else [f"dataset.root={tmp_path}"]
    settings = settings_of(compose(f"mtlnas/{name}", *overrides, *given, *TINY))
    _, searcher = command.make(settings)
    stages = {searcher.first_stage().stage, searcher.stage}
    assert sum(settings["epochs"][stage] for stage in stages) == OTHER_ROWS[command_line]
    if given:
        optimizer = searcher.configure_optimizers()[0]
        assert isinstance(optimizer, torch.optim.SGD) and not optimizer.defaults["nesterov"]
        assert optimizer.defaults["weight_decay"] == 0.00025
        factors = {group["lr"] / optimizer.defaults["lr"] for group in optimizer.param_groups}
        assert (100 in factors) == ("factor=100" in command_line)


def test_a_scaled_experiment_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTLSEARCH_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["mtlsearch"])
    size = ["dataset.size=32", "dataset.train=16", "dataset.val=4", "dataset.test=4", "dataset.batch_size=4"]
    arguments = ["experiment=mtlnas/scenes_table3", *TINY, *size, "epochs=1", "searcher.samples=2"]
    assert command.main([*arguments, "trainer.accelerator=cpu", "hydra.run.dir=a"]) == 0
    metrics = rundir.read_metrics(Path("a"))
    assert {
        name: {"top1", "top5"} <= set(metrics["val"][name]) for name in ("object_soft", "scene_soft")
    } == {
        "object_soft": True,
        "scene_soft": True,
    }
    assert len(metrics["samples"]) == 2
