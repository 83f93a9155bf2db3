"""Balancing at the command line: which there are, what a run with one leaves, what is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

import mtlsearch as ms
from mtlsearch import run as command
from mtlsearch.balancing import Aggregate, Fixed, ParetoMTL
from mtlsearch.report.curves import panels
from test_run import TINY

CONF = Path(__file__).parents[1] / "conf"
SEARCHERS = sorted(path.stem for path in (CONF / "searcher").glob("*.yaml"))
SMALL = {  # what a searcher needs beside a small backbone
    "mtnas": [
        "searcher.channels=4",
        "searcher.partial=1",
        "tasks=[semantic]",
        "searcher.search_branches=false",
    ],
    "random_policy": ["searcher.skips=1"],
    "triplenet": ["tasks=[detection,semantic]"],
}

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def made(capsys):
    """`made(*arguments)`: the searcher of a command line."""

    def call(*arguments):
        capsys.readouterr()
        backbone = TINY[:2] if "searcher=mtnas" not in arguments else []
        assert command.main([*backbone, *TINY[2:-2], *arguments, "--cfg", "job", "--resolve"]) == 0
        return command.make(yaml.safe_load(capsys.readouterr().out))[1]

    return call


@pytest.mark.parametrize("path", sorted((CONF / "balancing").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_makes_its_balancing(made, path):
    name = ["balancing.name=Krum", "+balancing.n_byzantine=1"] if path.stem == "torchjd" else []
    searcher = made("searcher=hard_sharing", f"balancing={path.stem}", *name)
    assert isinstance(searcher.balancing, Fixed) == (path.stem == "fixed")


@pytest.mark.parametrize("name", SEARCHERS)
def test_every_searcher_takes_it(made, name):
    searcher = made(f"searcher={name}", "balancing=mgda", *SMALL.get(name, []))
    stages = [searcher] if name != "mtnas" else [searcher._finetune("finetune")]
    if name not in ("adashare", "mtnas"):
        stages.append(searcher.first_stage())
    assert all(isinstance(stage.balancing, Aggregate) for stage in stages)


def test_preferences_are_set_in_a_line(made):
    searcher = made("searcher=hard_sharing", "balancing=pareto", "balancing.preference=[1,2,3]")
    assert isinstance(searcher.balancing, ParetoMTL) and searcher.balancing.preference == [1, 2, 3]


def test_a_run_leaves_its_factors_and_goes_on_alike(folder):
    arguments = [*TINY[:-2], "trainer.accelerator=cpu", "searcher=hard_sharing", "balancing=uncertainty"]
    assert command.main([*arguments, "epochs=2", "hydra.run.dir=run"]) == 0
    with Path("run/metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert all(0 < float(last[f"train/weight/{name}"]) != 1 for name in ("semantic", "normals", "depth"))
    drawn = [(title, unit) for title, unit, _ in panels(list(last))]
    assert ("depth", "factor of the loss") in drawn
    ms.load("run")


def test_what_is_wrong_is_named(refused):
    line = refused(*TINY, "balancing=pcgrd")
    assert "There is no balancing 'pcgrd'. Near it: pcgrad" in line
    assert "balancing.name has no value yet: add balancing.name=VALUE." in refused(*TINY, "balancing=torchjd")
    line = refused(*TINY, "balancing=torchjd", "balancing.name=UPgrad")
    assert "torchjd has no aggregator 'UPgrad': take one of AlignedMTL" in line
    line = refused(*TINY, "balancing=pareto", "balancing.preference=9")
    assert "preference must be from 0 to 4 for 2 tasks" in line
