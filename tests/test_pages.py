"""A real sweep over two searchers: the comparison in which it ends, and its pages in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mtlsearch import run as command
from mtlsearch.report import sweep

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TINY = ["backbone=timm", "backbone.name=test_resnet", "tasks=[semantic,depth]", "trainer.accelerator=cpu"]
TINY += [f"dataset.{name}" for name in ("size=32", "train=8", "val=4", "test=4", "batch_size=4")]
SWEEP = ["-m", *TINY, "epochs=2", "searcher=adashare,single_task", "seed=0", "hydra.sweep.dir=s"]
SECTIONS = {
    "s/comparison.html": [
        "In short",
        "To keep in mind",
        "Cost against gain",
        "All metrics, test data",
        "Cost",
        "Predictions side by side",
        "What was found",
        "How it was made",
    ],
    "s/0/report.html": [
        "In short",
        "Compared with other systems",
        "Cost against gain",
        "Metrics",
        "Retrained samples",
        "Predictions",
        "Policy",
        "Correlation",
        "Curves",
        "Cost",
        "Time",
        "How it was made",
    ],
}
MEASURE = """
const page = document.querySelector("iframe").contentDocument;
const width = page.documentElement.clientWidth;
const framed = (part) => part.closest(".scroll, pre");
const wide = [...page.body.querySelectorAll("*")].filter(
  (part) => !framed(part.parentElement) && part.getBoundingClientRect().right > width + 1);
wide.push(...[...page.querySelectorAll("p, h1, h2, h3, dd, li")].filter(
  (part) => !framed(part) && part.scrollWidth > part.clientWidth + 1));
document.title = JSON.stringify({
  width: width,
  scrolls: page.documentElement.scrollWidth > width,
  wide: wide.map((part) => part.tagName + " " + part.textContent.slice(0, 60)),
  missing: [...page.images].filter((image) => !image.complete || !image.naturalWidth).length,
  images: page.images.length,
  sections: [...page.querySelectorAll("h2")].map((title) => title.textContent),
});
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory, cache_folder):
    """The folder that holds the sweep, and what the command printed."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MTLSEARCH_CACHE", str(cache_folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        program = [sys.executable, "-W", "ignore", "-m", "mtlsearch.run", *SWEEP]
        done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture
def there(swept, monkeypatch):
    monkeypatch.chdir(swept[0])
    monkeypatch.setattr(sys, "argv", ["mtlsearch"])
    return swept[0]


def test_a_sweep_over_searchers_ends_in_the_comparison(there, swept):
    out = swept[1]
    assert "delta_m, %" in out and "Comparison: s/comparison.html" in out and "Missing" not in out
    report = Path("s/0/report.html").read_text()
    assert re.search(r"delta_m .* % against single-task networks, number [12] of 2 systems", report)
    for question in ("What was searched", "On what", "What was found", "What it costs", "How it compares"):
        assert re.search(rf"<dt>{question}</dt><dd>.{{20}}", report)


def test_finished_runs_are_not_repeated_and_what_is_missing_is_named(there, capfd):
    before = {path: path.stat().st_mtime_ns for path in Path("s").rglob("*.safetensors")}
    assert command.main(SWEEP) == 0
    assert "epoch 1 of" not in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path("s").rglob("*.safetensors")} == before

    shutil.copytree("s", "cut", ignore=shutil.ignore_patterns("1/metrics.json", "*.ckpt"))
    Path("cut/1/metrics.json").unlink()
    wanted = "hydra: {overrides: {task: ['searcher=adashare,mtan']}, sweeper: {params: {seed: '0,1'}}}"
    Path("cut/multirun.yaml").write_text(wanted)
    sweep.show("cut")
    (line,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("Missing")]
    assert line == (
        "Missing: single_task, seed 0: not finished, cut/1; single_task, seed 1: not begun; "
        "adashare, seed 1: not begun; mtan: not begun."
    )


def browse(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """What a headless browser makes of a page."""
    plain = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    return subprocess.run(
        [CHROMIUM, *plain, *options, "--dump-dom", path.resolve().as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("page", SECTIONS)
def test_a_page_is_whole_in_a_browser(there, page, width, tmp_path):
    content = re.sub(r"<meta http-equiv[^>]*>", "", Path(page).read_text())
    frame = f'<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{html.escape(content)}"></iframe>'
    wrapped = tmp_path / "frame.html"
    wrapped.write_text(
        f'<!doctype html><meta charset="utf-8">{frame}<script>onload = () => {{{MEASURE}}}</script>'
    )
    title = re.search(r"<title>(.*?)</title>", browse(wrapped, "--window-size=1400,1000").stdout, re.S)
    found = json.loads(html.unescape(title[1]))
    assert found["width"] == width and not found["scrolls"] and found["wide"] == []
    assert found["images"] > 3 and found["missing"] == 0
    assert found["sections"] == SECTIONS[page]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")
@pytest.mark.parametrize("page", SECTIONS)
def test_the_browser_has_nothing_to_complain_of(there, page):
    assert "CONSOLE" not in browse(Path(page), "--enable-logging=stderr").stderr
    broken = Path("broken.html")
    broken.write_text(Path(page).read_text().replace("data:image/png", "https://example.org/a.png?", 1))
    assert "CONSOLE" in browse(broken, "--enable-logging=stderr").stderr
