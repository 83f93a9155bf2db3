"""What tests share; `tiny` has the parts."""

import os
import sys
from pathlib import Path

import pytest
import torch

from tiny import TinyData, make_tasks, make_trainer

torch.set_num_threads(1)


@pytest.fixture
def tasks():
    """Semantic segmentation and depth."""
    return make_tasks()


@pytest.fixture
def datamodule():
    """8 training images of 32x32 in batches of 4, 5 to validate, 3 to test, with some pixels unlabelled."""
    return TinyData()


@pytest.fixture
def trainer():
    """`trainer(max_epochs=1, **others)`: a Trainer on the CPU that writes and prints nothing."""
    return make_trainer


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory):
    """Where the tests of the command line keep their scenes."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def folder(tmp_path, cache_folder, monkeypatch):
    """An empty working folder, and scenes in a cache of the tests' own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTLSEARCH_CACHE", str(cache_folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "argv", ["mtlsearch"])
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def refused(capsys):
    """`refused(*arguments)`: the one line with which a command line is refused."""
    from mtlsearch import run

    def call(*arguments):
        capsys.readouterr()
        assert run.main(arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    return call


@pytest.fixture(scope="session")
def samples():
    """The folder of real data sets."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MTLSEARCH_SAMPLES", default)).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not there; MTLSEARCH_SAMPLES names another folder")
    return folder
