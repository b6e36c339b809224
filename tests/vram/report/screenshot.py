"""The picture of a page in the README: `python -m tests.vram.report.screenshot` writes docs/images/page.png.

A small project is run twice by the plugin, on the CPU. Since the first run, which is saved as the base, its classifier
keeps every answer. The picture is what a browser shows of the page of the second.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).parents[3] / "docs" / "images" / "page.png"
WIDTH, HEIGHT = 1000, 1070
PROJECT = """
import os

import pytest
import torch

TEXTS = ["a short one", "one that is a little longer", "and the longest of the three texts that are here"]
LOG = []
model = torch.nn.Sequential(torch.nn.Embedding(256, 64), torch.nn.Linear(64, 128), torch.nn.ReLU())
head = torch.nn.Linear(128, 2)


def encode(text):
    return torch.tensor([list(text.encode())])


@torch.no_grad()
def embed(text):
    return model[0](encode(text)).mean(1)


def classify(text):
    scores = head(model(encode(text)).mean(1))
    if "LEAKS" in os.environ:
        LOG.append(scores)  # with its graph
    return scores.argmax()


def train(text):
    head(model(encode(text))).mean().backward()
    model.zero_grad()


@torch.no_grad()
def generate(text):
    tokens = encode(text)
    for _ in range(8):
        following = head(model(tokens)[:, -1:]).argmax(-1)
        tokens = torch.cat([tokens, following], dim=1)


@pytest.mark.parametrize("step", [embed, train, generate, classify])
def test_memory(vram, step):
    recording = vram.replay(step, TEXTS, name=step.__name__)
    vram.assert_stable(recording)
    vram.assert_peak(recording, "1 MiB")


@pytest.mark.vram_limit("512 KiB")
def test_one_batch():
    head(model(torch.zeros(4, 64, dtype=torch.long)))
"""


def main() -> None:
    """Run the project, make its page and take the picture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "test_texts.py").write_text(PROJECT)
        options = ("--vram-device", "cpu", "--benchmark-autosave", "--benchmark-quiet")
        run(folder, "pytest", *options, "--vram-accept")
        run(folder, "pytest", *options, "--vram-compare", "--vram-report", "reports/memory.json", LEAKS="1")
        run(folder, "vram", "report")
        photograph(folder / "reports" / "memory.html")
    print(f"written: {PICTURE}, {PICTURE.stat().st_size / 1e3:.0f} kB")


def run(folder: Path, module: str, *arguments: str, **variables: str) -> None:
    command = [sys.executable, "-m", module, *arguments]
    ended = subprocess.run(command, cwd=folder, env={**os.environ, **variables, "CI": ""}, check=False)
    assert ended.returncode in (0, 1), ended


def photograph(page: Path) -> None:
    """Write the top of a page as a picture of 256 colours."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))))
    with sync_playwright() as started:
        launched = started.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        opened = launched.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        opened.goto(page.as_uri())
        PICTURE.parent.mkdir(exist_ok=True)
        opened.screenshot(path=PICTURE)
        launched.close()
    with Image.open(PICTURE) as picture:
        few = picture.convert("RGB").quantize(256)
    few.save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
