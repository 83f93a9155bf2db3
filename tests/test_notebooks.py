"""Every notebook runs from beginning to end, and shows what it promises."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"


def read(name):
    return nbformat.read(FOLDER / name, as_version=4)


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.ipynb")))
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MTLSEARCH_CACHE", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = read(name)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=tmp_path)
    printed = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    pictures = [out for cell in notebook.cells for out in cell.get("outputs", []) if "image/png" in str(out)]
    assert pictures and "Traceback" not in printed
    if name == "01_own_tasks.ipynb":
        found = re.search(r"error ([\d.]+), of the median ([\d.]+)", printed)
        assert found and float(found[1]) < 0.85 * float(found[2])


def test_a_task_of_ones_own_takes_less_than_thirty_lines():
    (cell,) = [
        cell for cell in read("01_own_tasks.ipynb").cells if "own-task" in cell.metadata.get("tags", [])
    ]
    lines = [line for line in cell.source.splitlines() if line.strip()]
    assert len(lines) < 30
    for part in ("ms.Target)", "nn.Module)", "def error", "metrics=", "ms.Task("):
        assert part in cell.source


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.ipynb")))
def test_a_stored_notebook_is_small(name):
    assert (FOLDER / name).stat().st_size < 200_000
