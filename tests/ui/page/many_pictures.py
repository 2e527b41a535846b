"""A model of a hundred concepts with two hundred pictures each on the page: `python -m tests.ui.page.many_pictures`.

With the page's Python (.page). Told are the seconds to open the page and the Concepts tab, to choose another concept,
and to save a change, in turn with those of a model of one concept with two hundred pictures.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth.core import project
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.project import Folders
from tests.ui.page.conftest import Server, chromium, models_folder
from tests.ui.page.hands import Hands

CONCEPTS, PICTURES = 100, 200
SIZE = (1536, 1024)
TURNS = 5
TILES = "#db_pictures .db-tile img"
LOADED = f"() => [...document.querySelectorAll('{TILES}')].filter(one => one.complete && one.naturalWidth).length"


def made(data: Path, place: Path, concepts: int) -> Server:
    """A server on one model; the pictures are noise, each file a link to one of a few, each with a caption."""
    place.mkdir()
    noise = random.Random(5)
    few = []
    for number in range(10):
        few.append(place / f"{number}.jpg")
        Image.frombytes("RGB", (96, 64), noise.randbytes(96 * 64 * 3)).resize(SIZE).save(few[-1])
    own = {}
    for concept in range(concepts):
        folder = place / f"{concept}"
        folder.mkdir()
        for number in range(PICTURES):
            os.link(few[number % len(few)], folder / f"{number:03}.jpg")
            (folder / f"{number:03}.txt").write_text(f"picture {number} of {concept}")
        own[f"concepts.{concept}.instance_data_dir"] = str(folder)
        own[f"concepts.{concept}.instance_prompt"] = "a photo of sks [filewords]"
    project.create(Folders(data), "star", MINIATURE, own)
    return Server(data)


def seconds(do: Any, until: Any) -> float:
    began = time.perf_counter()
    do()
    until()
    return round(time.perf_counter() - began, 2)


def visit(browser: Any, server: Server, concepts: int) -> dict[str, float]:
    began = time.perf_counter()
    hands = Hands(browser, server.address)
    hands.see("#db_about", "pictures")
    said = {"open": round(time.perf_counter() - began, 2)}
    first = lambda: hands.page.wait_for_function(f"({LOADED})() > 8")  # noqa: E731
    said["concepts"] = seconds(lambda: hands.tab("Concepts"), first)
    if concepts > 1:
        wanted = concepts // 2
        choose = hands.page.locator("#db_concept label", has_text=f"Concept {wanted + 1}").first
        there = lambda: hands.see("#db_pictures textarea[data-db-address*='/concepts/50/']")  # noqa: E731
        said["choose"] = seconds(choose.click, lambda: (there(), first()))
    said["save"] = seconds(
        lambda: hands.write("db_concepts_N_class_prompt", f"a photo of {time.time_ns()}"), lambda: saved(hands)
    )
    more = hands.page.locator("#db_pictures .db-more").first
    said["show_more"] = seconds(more.click, lambda: hands.page.wait_for_selector(f"{TILES} >> nth=90"))
    assert hands.errors == []
    hands.page.close()
    return said


def saved(hands: Hands) -> None:
    hands.page.wait_for_selector('#db_page[data-db-unsaved="true"]', state="attached")
    hands.saved()


def main() -> None:
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as place, sync_playwright() as started:
        servers = {}
        for concepts in (1, CONCEPTS):
            data = models_folder(Path(place) / f"of {concepts}")
            servers[concepts] = made(data, Path(place) / f"pictures of {concepts}", concepts)
        browser = started.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        told: dict[int, list[dict[str, float]]] = {concepts: [] for concepts in servers}
        try:
            for _ in range(TURNS):
                for concepts, server in servers.items():
                    told[concepts].append(visit(browser, server, concepts))
                    print(concepts, told[concepts][-1], file=sys.stderr)
        finally:
            browser.close()
            for server in servers.values():
                server.end()
        middle = {
            f"{concepts} concepts": {
                what: [statistics.median(one[what] for one in some), max(one[what] for one in some)] for what in some[0]
            }
            for concepts, some in told.items()
        }
        print(json.dumps(middle))


if __name__ == "__main__":
    main()
