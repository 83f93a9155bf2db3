"""The command line on random policies that go by a run of AdaShare, and on hard sharing."""

from __future__ import annotations

from pathlib import Path

import pytest

import mtlsearch as ms
from mtlsearch import run as command
from mtlsearch import rundir
from mtlsearch.architecture import Architecture
from mtlsearch.searchers.policy import policy_architecture
from tiny import TINY, make_tasks

pytestmark = pytest.mark.usefixtures("folder")

RANDOM = [*TINY, "searcher=random_policy", "searcher.like=found"]


def write_run(folder):
    """A run of AdaShare, as far as random policies read it."""
    select = {"semantic": [True, False, True, False], "normals": [True, True, True, False]}
    backbone = ms.backbones.load("test_resnet")
    architecture = policy_architecture(make_tasks("semantic", "normals"), backbone, select)
    (folder / "found").mkdir()
    (folder / "found" / "architecture.json").write_text(architecture.to_json())


@pytest.mark.parametrize(
    ("per_task", "counts"), [("true", {(2, 1)}), ("false", {(0, 3), (1, 2), (2, 1), (3, 0)})]
)
def test_random_policies_have_the_skips_of_a_run(folder, per_task, counts):
    write_run(folder)
    assert command.main([*RANDOM, f"searcher.per_task={per_task}", "hydra.run.dir=a"]) == 0
    tried = rundir.read_metrics(Path("a"))["retrained"]
    assert len(tried) == 2
    assert {tuple(on.count(False) for on in one["select"].values()) for one in tried} <= counts
    architecture = Architecture.from_json(Path("a/architecture.json").read_text())
    assert architecture.select in [one["select"] for one in tried]
    assert [path.stem for path in Path("a/figures").iterdir() if path.stem in ("policy", "correlation")] == [
        "policy"
    ]
    assert set(ms.load("a").select) == {"semantic", "normals"}


def test_a_run_that_is_not_there_is_refused(refused):
    assert "like: found/architecture.json is not there" in refused(*RANDOM)


def test_hard_sharing_shows_no_policy():
    assert command.main([*TINY, "searcher=hard_sharing", "hydra.run.dir=a"]) == 0
    assert not {"policy", "correlation"} & {path.stem for path in Path("a/figures").iterdir()}
