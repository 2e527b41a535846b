"""How long a WebUI's page takes, and how soon after it ours can be worked in.

The command is `python -m tests.host.ready DIR [VISITS]`, with the page's Python (.page).

Two WebUIs stand side by side, with the extension and without it, and a browser that has never been there opens their
pages in turn, so that a busy machine slows both. As soon as the WebUI says that its page is loaded the visitor goes to
the Dreambooth tab. Told are seconds from the beginning of the visit.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from dreambooth.core import project
from dreambooth.core.install_paths import MINIATURE, PROJECT, SUBJECT_PICTURES
from dreambooth.core.project import Folders
from tests.host.real import LONG_MS, WebUI
from tests.ui.page.conftest import chromium

NAME = "sample-star"
KINDS = ("without", "with")

# Runs before any script of the page's own. `loaded` is the WebUI's own word, said when txt2img is there; `filled`, that
# the controls hold the model's settings; `run`, that the run beside them is drawn; `quiet`, when the browser had
# for the last time been busy for 50 ms at a stretch.
WATCH = """
    window.seen = {};
    const note = (what) => { window.seen[what] ??= performance.now() / 1000; };
    const shown = (selector) => {
        const found = document.querySelector(selector);
        return found && found.offsetParent !== null ? found : null;
    };
    new PerformanceObserver((list) => {
        for (const task of list.getEntries()) window.seen.quiet = (task.startTime + task.duration) / 1000;
    }).observe({type: "longtask", buffered: true});
    let asked = false;
    setInterval(() => {
        if (!asked && typeof onUiLoaded === "function") {
            asked = true;
            onUiLoaded(() => {
                note("loaded");
                const bar = document.querySelectorAll("#tabs > .tab-nav button, #tabs > .tab-wrapper [role=tab]");
                [...bar].find((one) => one.textContent.trim() === "Dreambooth")?.click();
            });
        }
        if (shown("#txt2img_generate")) note("txt2img");
        if (shown("#db_new_name")) note("tab");
        if (shown("#db_model input")?.value === NAME && document.querySelector("#db_lora_rank input")?.value === "7") {
            note("filled");
        }
        if (shown("#db_run [data-db-part=head]")) note("run");
    }, 10);
""".replace("NAME", json.dumps(NAME))


def visit(browser: Any, webui: WebUI, last: str) -> dict[str, float]:
    """One visit, until the mark `last` was seen."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page = context.new_page()
    page.add_init_script(WATCH)
    page.goto(webui.address, timeout=LONG_MS)
    page.wait_for_function("what => what in window.seen", arg=last, timeout=LONG_MS)
    page.wait_for_function("performance.now() / 1000 - window.seen.quiet > 1")
    seen: dict[str, float] = page.evaluate("window.seen")
    sizes = "performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation'))"
    seen["fetched_mb"] = page.evaluate(f"{sizes}.reduce((sum, one) => sum + one.decodedBodySize, 0)") / 1e6
    context.close()
    return seen


def prepared(folder: Path, place: Path, kind: str) -> WebUI:
    """A WebUI with or without the extension, and one model in its folder."""
    data = place / kind
    models = data / "models"
    (models / "Stable-diffusion").mkdir(parents=True)
    (data / "extensions").mkdir()
    own = {"lora.rank": 7, "concepts.0.instance_data_dir": str(SUBJECT_PICTURES)}
    project.create(Folders(models), NAME, MINIATURE, own)
    if kind == "with":
        (data / "extensions" / "dreambooth").symlink_to(PROJECT)
    return WebUI(folder, str(folder / "venv/bin/python"), data)


def main(folder: Path, visits: int) -> None:
    with tempfile.TemporaryDirectory(prefix="webui-ready-") as place, sync_playwright() as started:
        hosts = {kind: prepared(folder, Path(place), kind) for kind in KINDS}
        browser = started.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        measured: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        try:
            for host in hosts.values():
                host.start("--skip-load-model-at-start")
            for number in range(visits + 1):
                for kind, host in hosts.items():
                    said = visit(browser, host, "run" if kind == "with" else "loaded")
                    print(kind, {key: round(value, 2) for key, value in said.items()}, file=sys.stderr)
                    if number:  # the first only warms the WebUI
                        measured[kind].append(said)
        finally:
            browser.close()
            for host in hosts.values():
                host.kill()
    print(json.dumps(told(measured)))


def told(measured: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians, and what the extension adds: to the WebUI's own page, and from there until ours can be worked in."""
    middle = {
        kind: {key: round(statistics.median(one[key] for one in all_of), 2) for key in all_of[0]}
        for kind, all_of in measured.items()
    }
    pairs = list(zip(measured["with"], measured["without"], strict=True))
    own = [ours["loaded"] - bare["loaded"] for ours, bare in pairs]
    after = [ours["filled"] - ours["loaded"] for ours, _ in pairs]
    whole = [ours["filled"] - bare["loaded"] for ours, bare in pairs]
    spread = {
        what: {"median": round(statistics.median(some), 2), "least": round(min(some), 2), "most": round(max(some), 2)}
        for what, some in (("webui_later", own), ("ours_after_it", after), ("ours_after_bare_webui", whole))
    }
    return {**middle, **spread}


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 7)
