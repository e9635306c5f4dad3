"""The explorer in a JupyterLab in a browser: needs ``pip install playwright`` and a Chromium."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from faces.files import HERE, WEIGHTS
from faces.generator import load_generator

api = pytest.importorskip("playwright.sync_api")

EXPLORE = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import torch, helpers
from faces.generator import load_generator
draw, sample_z = load_generator({str(WEIGHTS)!r})
helpers.explore(draw, sample_z, {{"all": torch.full((100,), 0.1)}}, "saved")
"""
# Keeps the milliseconds from each press of a key until another picture has been decoded.
WATCH = """picture => {
    let shown = picture.src, pressed
    window.waited = []
    const area = picture.closest(".jp-OutputArea")
    addEventListener("keydown", () => pressed = performance.now(), true)
    new MutationObserver(async () => {
        const now = area.querySelector("img")
        if (!now || now.src === shown) return
        shown = now.src
        await now.decode()
        window.waited.push(performance.now() - pressed)
    }).observe(area, {subtree: true, childList: true, attributes: true})
}"""


@pytest.fixture
def page() -> Iterator["api.Page"]:
    """An empty page of a browser without a window."""
    with api.sync_playwright() as playwright:
        names = ("chromium", "google-chrome", playwright.chromium.executable_path)
        path = next(filter(None, map(shutil.which, names)), None)
        if path is None:
            pytest.skip("there is no Chromium: playwright install chromium")
        browser = playwright.chromium.launch(executable_path=path)
        page = browser.new_page()
        page.set_default_timeout(120_000)
        yield page
        browser.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """The address of a notebook that explores, in a JupyterLab with no settings but its own."""
    kernel = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    notebook = new_notebook(cells=[new_code_cell(EXPLORE)], metadata=kernel)
    nbformat.write(notebook, tmp_path / "explore.ipynb")
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    names += ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    own = {name: str(tmp_path / "jupyter" / name) for name in names}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", "--IdentityProvider.token=secret"]
    command += ["--LabApp.news_url=None", f"--ServerApp.root_dir={tmp_path}"]
    with open(tmp_path / "log.txt", "w") as log:
        options = {"cwd": tmp_path, "env": os.environ | own, "stdout": log, "stderr": log}
        server = subprocess.Popen(command, **options)
    state = Path(own["JUPYTER_RUNTIME_DIR"]) / f"jpserver-{server.pid}.json"
    end = time.monotonic() + 120
    try:
        while not (state.is_file() and state.read_text()):  # written once it listens
            assert server.poll() is None and time.monotonic() < end, Path(log.name).read_text()
            time.sleep(0.1)
        yield f"{json.loads(state.read_text())['url']}lab/tree/explore.ipynb?token=secret"
    finally:
        server.terminate()  # its kernels too
        server.wait(60)


def slowdown() -> float:
    """How many times as long as on an idle core work takes here, beside other programs."""
    wall, own = time.perf_counter(), time.process_time()
    while time.process_time() < own + 0.2:
        pass
    return (time.perf_counter() - wall) / 0.2


def test_the_picture_follows_a_slider_and_is_saved(page, lab, tmp_path):
    page.goto(lab)
    page.locator(".jp-Notebook .jp-CodeCell .cm-content").click()
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.keyboard.press("Shift+Enter")
    picture = page.locator(".jp-OutputArea-output img")
    picture.wait_for()
    picture.evaluate(WATCH)
    slider = page.locator(".widget-hslider", has_text="all").locator(".noUi-handle")
    pictures, waited = [picture.get_attribute("src")], []
    for n in range(15):
        slider.press("ArrowRight")  # by 0.1
        page.wait_for_function(f"window.waited.length > {n}")
        waited = page.evaluate("window.waited")
        pictures.append(picture.get_attribute("src"))
    assert len(set(pictures)) == 16 and len(waited) == 15
    median, best, slower = statistics.median(waited), min(waited), slowdown()
    print(f"key to picture: {median:.0f} ms, at best {best:.0f}; {slower:.1f} times slowed down")
    assert best < 100 * slower
    page.locator(".widget-button", has_text="Save").click()
    page.get_by_text("saved: saved/face_1.png").wait_for()
    z = torch.from_numpy(np.load(tmp_path / "saved" / "face_1.npy"))
    draw, sample_z = load_generator(WEIGHTS)
    torch.manual_seed(1)
    assert torch.allclose(z, sample_z(1) + 15 * 0.1 * 0.1)
    face = np.asarray(Image.open(tmp_path / "saved" / "face_1.png")).astype(int)
    assert np.abs(face - draw(z)[0]).max() <= 1
