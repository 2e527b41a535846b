"""Draws docs/screenshots/webui-NAME.png anew, in a real WebUI: `python -m tests.host.screenshots DIR NAME`, with the
page's Python (.page)."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from dreambooth.core import project
from dreambooth.core.install_paths import MINIATURE, PROJECT, SUBJECT_PICTURES
from dreambooth.core.project import Folders
from dreambooth.service import demo
from tests.host.real import LONG_MS, Visitor, WebUI
from tests.ui.page.conftest import chromium
from tests.ui.page.screenshots import TARGET, save

SHOWN = {
    **demo.METHODS["LoRA"],
    "concepts.0.instance_data_dir": "~/pictures",
    "concepts.0.num_class_images_per": 0,
    "intervals.num_train_epochs": 200,
    "intervals.save_preview_every": 40,
    "previews.count": 1,
    "previews.prompts": "a photo of a large sks star on a purple background",
}


def main(folder: Path, name: str) -> None:
    with tempfile.TemporaryDirectory(prefix="webui-") as place, sync_playwright() as started:
        os.environ["HOME"] = place  # so that the picture shows no folder of this machine's owner
        shutil.copytree(SUBJECT_PICTURES, Path(place) / "pictures")
        data = Path(place) / "data"
        models = data / "models"
        (models / "Stable-diffusion").mkdir(parents=True)
        (data / "extensions").mkdir()
        shutil.copyfile(MINIATURE, models / "Stable-diffusion" / "miniature.safetensors")
        (data / "extensions" / "dreambooth").symlink_to(PROJECT)
        project.create(Folders(models), "sample-star", MINIATURE, SHOWN)
        webui = WebUI(folder, str(folder / "venv/bin/python"), data, "--skip-load-model-at-start")
        webui.start()
        browser = started.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        try:
            visitor = Visitor(browser, webui.address, 1280, 1000)
            visitor.tab("Concepts")
            visitor.press("db_train")
            visitor.state("done", LONG_MS)
            visitor.see("#db_run .db-use")
            time.sleep(2)
            save(visitor.page.screenshot(), TARGET / f"webui-{name}.png")
        finally:
            browser.close()
            webui.kill()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2])
