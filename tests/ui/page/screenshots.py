"""Draws docs/screenshots anew, with a browser on the page and the engine behind it.

The command is `python -m tests.ui.page.screenshots`.

Run it with the page's Python (.page); the engine's is taken from DREAMBOOTH_ENGINE_PYTHON or .engine.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth.core import project
from dreambooth.core.install_paths import PROJECT
from dreambooth.core.project import Folders
from dreambooth.engine.miniature import world
from dreambooth.service import demo
from tests.ui.page.conftest import Server, chromium, models_folder
from tests.ui.page.hands import Hands

TARGET = PROJECT / "docs" / "screenshots"
WIDTHS = {"wide": 1280, "narrow": 400}
PICTURES = 8
TABS = ("Model", "Settings", "Concepts", "Generate")


def main() -> None:
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory(prefix="webui-") as place, sync_playwright() as started:
        os.environ["HOME"] = place  # so that the pictures show no folder of this machine's owner
        draw_subject(Path(place) / "pictures")
        data = models_folder(Path(place))
        server = Server(data)
        browser = started.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        try:
            draw_all(browser, server, data)
        finally:
            browser.close()
            server.end()


def draw_subject(folder: Path) -> None:
    """More pictures of the demo's subject than it has itself, so that one can be held out."""
    folder.mkdir()
    for number, scene in enumerate(world.subject_scenes(PICTURES, seed=11)):
        world.draw_subject(scene).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"sks star on a {scene.background} background", encoding="utf-8")


def draw_all(browser: Any, server: Server, data: Path) -> None:
    shoot(browser, server, "empty", ["Model"])
    own = {
        **demo.METHODS["LoRA"],
        "concepts.0.instance_data_dir": "~/pictures",
        "concepts.0.class_mode": "prediction",
        "concepts.0.held_out": 1,
        "intervals.num_train_epochs": 140,
        "intervals.save_preview_every": 28,
        "intervals.save_model_every": 28,
        "learning.scheduler": "cosine",
        "learning.warmup": 0.1,
        "previews.count": 1,
        "previews.prompts": "a photo of a large sks star on a purple background; a photo of a large star",
    }
    project.create(Folders(data), "sample-star", data / "Stable-diffusion" / "miniature.safetensors", own)
    hands = Hands(browser, server.address)
    hands.tab("Concepts")
    hands.press("db_check")
    hands.see("#db_plan .db-good")
    shoot(browser, server, "ready", list(TABS))
    hands.press("db_train")
    hands.state("running", 240_000)
    hands.see("#db_run .db-sheet th:nth-child(3)", wait_ms=240_000)
    shoot(browser, server, "training", ["Concepts"])
    hands.state("done", 600_000)
    hands.tab("Generate")
    hands.unfold("db_sheet_section")
    hands.write("db_prompt", "a photo of a large sks star on a purple background")
    hands.write("db_sheet_columns", "0, 0.5, 1")
    hands.press("db_draw_sheet")
    hands.see("#db_drawn img >> nth=11", wait_ms=240_000)
    shoot(browser, server, "results", ["Model", "Generate"])
    hands.page.close()
    shoot(browser, server, "error", ["Settings"], mistake=True)


def shoot(browser: Any, server: Server, name: str, tabs: list[str], *, mistake: bool = False) -> None:
    """Each tab in both widths, the first also dark."""
    for width_name, width in WIDTHS.items():
        for dark in (False, True):
            hands = Hands(browser, server.address, width, 860, dark=dark)
            for tab in tabs if not dark else tabs[-1:]:
                hands.tab(tab)
                if tab == "Settings" and not mistake:
                    hands.unfold("db_section_learning")
                if mistake:
                    hands.write("db_general_seed", "-3")
                    hands.see("#db_general_seed .db-sentence")
                if name == "results" and tab == "Generate":
                    hands.page.locator("#db_drawn").first.scroll_into_view_if_needed()
                time.sleep(1.5)
                label = f"{name}-{tab.lower()}-{width_name}{'-dark' if dark else ''}"
                save(hands.page.screenshot(full_page=width < 700), TARGET / f"{label}.png")
            hands.page.close()


def save(picture: bytes, path: Path) -> None:
    """Few colours make a small file; nothing of the page needs more."""
    raw = path.with_suffix(".raw.png")
    raw.write_bytes(picture)
    with Image.open(raw) as image:
        image.convert("RGB").quantize(256).save(path, optimize=True)
    raw.unlink()


if __name__ == "__main__":
    main()
