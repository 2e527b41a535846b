"""A run of 24 hours on the page: `python -m tests.ui.page.long_run [MINUTES]`, with the page's Python (.page).

A run's folder is made that tells a million events, and goes on telling a dozen a second. Told are the seconds until a
browser shows its curves and log, in turn with those for a run that has only begun; what the server's process and the
browser's page hold then and after some minutes; and what a look costs, while it goes on and once its engine is lost.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from dreambooth.core import job_list, project
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders
from dreambooth.core.settings import parse
from tests.ui.page.conftest import Server, chromium, models_folder
from tests.ui.page.hands import Hands

NAME = "star"
LINES, SHORT_LINES = 1_000_000, 1_000
PER_SECOND = 12  # a million in 24 hours
OPENINGS = 5  # each of a server that has read nothing yet
LOOKS = 5
SEEN = "#db_run .db-curve polyline"


def step(number: int, steps: int) -> str:
    """A line as the engine writes it."""
    loss = 0.1 + 0.05 * math.sin(number / 700) + 0.2 * math.exp(-number / 90_000)
    said = {
        "event": "step", "time": 1795279684.826 + number / PER_SECOND, "step": number, "steps": steps,
        "images": number * 4, "loss": round(loss, 5), "subject_loss": round(loss, 5), "prior_loss": 0.05123,
        "rate": 1e-4, "rates": {"unet": 1e-4, "text_encoder": 5e-5}, "gradient_norms": {"unet": 0.60702},
        "steps_per_second": 11.574, "seconds_left": (steps - number) / PER_SECOND, "memory_bytes": 7_901_234_567,
    }  # fmt: skip
    return json.dumps(said) + "\n"


def other(number: int, event: str, **fields: Any) -> str:
    return json.dumps({"event": event, "time": 1795279684.826 + number / PER_SECOND, **fields}) + "\n"


def made(folders: Folders, lines: int) -> Job:
    """A model with a run of so many events: steps, and now and then a preview, a file and a state."""
    own = {"concepts.0.instance_data_dir": str(SUBJECT_PICTURES), "concepts.0.instance_prompt": "a photo of sks star"}
    opened = project.create(folders, NAME, MINIATURE, own)
    job = job_list.new_run(folders, opened, parse(opened.settings()))
    picture = str(next(SUBJECT_PICTURES.glob("*.png")))
    with open(job.folder / "events.jsonl", "w", encoding="utf-8") as file:
        file.write(other(0, "started", kind="train", pid=1, boot="", memory_kills=0))
        for number in range(1, lines):
            file.write(step(number, 2 * lines))
            if number % (lines // 100) == 0:
                file.write(other(number, "preview", images=number * 4, paths=[picture], sheet=picture))
                file.write(other(number, "saved", kind="lora", path=f"/{number}.safetensors", bytes=9, images=number))
                file.write(other(number, "state", step=number, path=str(job.state / f"{number:09}"), seconds=0.3))
    with open(job.log, "w", encoding="utf-8") as log:
        log.writelines(f"line {number} of the log\n" for number in range(lines // 10))
    return job


class Engine:
    """Holds a run as its engine does, and goes on telling of it."""

    def __init__(self, job: Job, lines: int) -> None:
        self.job, self.number, self.steps = job, lines, 2 * lines
        self.held, self.stopping = job.hold(), threading.Event()
        self.thread = threading.Thread(target=self.tell, daemon=True)
        self.thread.start()

    def tell(self) -> None:
        while not self.stopping.wait(1 / PER_SECOND):
            with open(self.job.folder / "events.jsonl", "a", encoding="utf-8") as file:
                file.write(step(self.number, self.steps))
            self.number += 1

    def end(self) -> None:
        self.stopping.set()
        self.thread.join()
        if self.held:
            self.held.close()


def opening(browser: Any, data: Path) -> float:
    """The seconds until curves and log are there, from the beginning of the visit to a server that was just started."""
    server = Server(data)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.add_init_script(
        f"""setInterval(() => {{
            const there = document.querySelector('{SEEN}') && document.querySelector('#db_run [data-db-part=log] pre');
            if (there) window.thereAt ??= performance.now() / 1000;
        }}, 10)"""
    )
    page.goto(server.address)
    page.wait_for_function("window.thereAt", timeout=120_000)
    seconds = float(page.evaluate("window.thereAt"))
    page.close()
    server.end()
    return seconds


def look(server: Server) -> float:
    """The seconds of one look at the run, as the page asks for it."""
    began = time.perf_counter()
    with urllib.request.urlopen(f"{server.address}/dreambooth/page/live?view=run&model={NAME}", timeout=120) as answer:
        answer.read()
    return time.perf_counter() - began


def held(server: Server, page: Any) -> dict[str, float]:
    """What the server's process holds, and the browser's page after its rubbish was collected."""
    rollup = Path(f"/proc/{server.process.pid}/smaps_rollup").read_text()
    own = sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith(("Private_Clean", "Private_Dir")))
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    session.send("Performance.enable")
    metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    session.detach()
    heap, nodes = metrics["JSHeapUsedSize"] / 1e6, metrics["Nodes"]
    return {"server_mb": round(own / 1000, 1), "page_heap_mb": round(heap, 2), "page_nodes": nodes}


def measure(browser: Any, server: Server, engine: Engine, minutes: float) -> dict[str, Any]:
    hands = Hands(browser, server.address)
    hands.state("running")
    hands.see(SEEN)
    said: dict[str, Any] = {"look": round(look(server), 3), "held": []}
    for number in range(LOOKS):
        if number:
            hands.page.wait_for_timeout(minutes * 60_000 / (LOOKS - 1))
        said["held"].append({"minutes": round(number * minutes / (LOOKS - 1), 1), **held(server, hands.page)})
    engine.end()
    hands.state("failed")
    said["look_lost"] = round(look(server), 3)
    said["held_lost"] = held(server, hands.page)
    hands.page.close()
    return said


def main(minutes: float) -> None:
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as place, sync_playwright() as started:
        folders = {"short": models_folder(Path(place) / "short"), "long": models_folder(Path(place) / "long")}
        made(Folders(folders["short"]), SHORT_LINES)
        job = made(Folders(folders["long"]), LINES)
        size = (job.folder / "events.jsonl").stat().st_size
        browser = started.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        engine = Engine(job, LINES)
        opened: dict[str, list[float]] = {name: [] for name in folders}
        for _ in range(OPENINGS):
            for name, data in folders.items():
                opened[name].append(round(opening(browser, data), 2))
                print(name, opened[name][-1], file=sys.stderr)
        server = Server(folders["long"])
        try:
            said = measure(browser, server, engine, minutes)
        finally:
            browser.close()
            server.end()
        print(json.dumps({"events": LINES, "mb": round(size / 1e6), "open": opened, **said}))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 4)
