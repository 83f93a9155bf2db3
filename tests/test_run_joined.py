"""The command line on baselines that join single-task networks."""

from __future__ import annotations

import inspect
from pathlib import Path

import hydra
import pytest
import torch

import mtlsearch as ms
from mtlsearch import run as command
from mtlsearch import rundir
from mtlsearch.baselines.joined import JoinedBaseline
from mtlsearch.baselines.nddr import Fused
from tiny import TINY

SYSTEMS = {
    "cross_stitch": (ms.CrossStitch, JoinedBaseline),
    "sluice": (ms.Sluice, JoinedBaseline),
    "nddr": (ms.NDDR, Fused, JoinedBaseline),
    "nddr_supernet": (ms.NDDR, Fused, JoinedBaseline),
    "mtlnas_supernet": (ms.MTLNASSupernet, Fused, JoinedBaseline),
}


def composed(*overrides):
    with hydra.initialize_config_dir(str(command.CONF), version_base="1.3"):
        return hydra.compose("run", list(overrides))


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_argument_can_be_set_without_a_plus(system):
    calls = [cls.__init__ for cls in (*SYSTEMS[system], ms.MultiTask)]
    parameters = [p for call in calls for p in inspect.signature(call).parameters.values()]
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    names = {p.name for p in parameters if p.kind not in kinds}
    names -= {
        "self",
        "tasks",
        "backbone",
        "network",
        "seed",
        "pretrained",
        "balancing",
    }  # given by other groups
    names -= {"edges", "join", "unpack", "stage"}  # by classes alone
    config = composed(f"searcher={system}")
    assert {key for key in config.searcher if not key.startswith("_")} == names
    assert set(config.epochs) == {"single_task", "train"}


@pytest.mark.parametrize("system", ["cross_stitch", "sluice", "mtlnas_supernet"])
@pytest.mark.usefixtures("folder")
def test_a_run_ends_in_a_network_that_can_be_loaded(system, capsys):
    assert command.main([*TINY, f"searcher={system}", "hydra.run.dir=a"]) == 0
    metrics = rundir.read_metrics(Path("a"))
    assert list(metrics["seconds"]) == ["single_task", "train"]
    assert metrics["cost"]["single_task_backbone_params"] < metrics["cost"]["backbone_params"]
    network = ms.load("a")
    assert set(network(torch.rand(1, 3, 32, 32))) == {"semantic", "normals"}
    assert "a/report.html" in capsys.readouterr().out


@pytest.mark.usefixtures("folder")
def test_nddr_can_start_from_a_run_of_single_task_networks(refused):
    assert command.main([*TINY, "searcher=single_task", "hydra.run.dir=single"]) == 0
    for system in ("nddr", "nddr_supernet"):
        arguments = [*TINY, f"searcher={system}", "searcher.init=single"]
        assert command.main([*arguments, f"hydra.run.dir={system}"]) == 0
        metrics = rundir.read_metrics(Path(system))
        assert "single_task" not in metrics["seconds"] and metrics["budget"]
    assert "nowhere/model.safetensors is not there" in refused(
        *TINY, "searcher=nddr", "searcher.init=nowhere"
    )
