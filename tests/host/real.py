"""A WebUI for real: started in a folder that a person names, ended, asked over HTTP, and looked at with a browser."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth.service import environment
from tests.ui.page.hands import Hands

FLAGS = [
    "--skip-prepare-environment", "--skip-install", "--skip-torch-cuda-test", "--skip-version-check",
    "--skip-python-version-check", "--no-download-sd-model", "--no-hashing", "--api",
]  # fmt: skip
START_SECONDS = 300
STARTED = b"Startup time: "  # what a WebUI says last
LONG_MS = 600_000
LOOK_MS, QUIET_MS, TURN_MS = 250, 2000, 120_000
PING = re.compile(r"/internal/ping\b")  # it ends in a question mark, which no glob of playwright's matches


class Refused(Exception):
    """The WebUI's answer was an error; what it said is the text."""


class WebUI:
    """The WebUI in `folder`, on the CPU, with everything that it writes in `data`."""

    def __init__(self, folder: Path, python: str, data: Path, *flags: str) -> None:
        self.folder, self.python, self.data, self.flags = folder, python, data, flags
        self.is_forge = (folder / "modules_forge").exists()
        self.log, self.localizations = data / "log", data / "localizations"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.has_engine = True

    def start(self, *flags: str) -> float:
        """Returns the seconds until it answers. Nothing is asked before it has started: AUTOMATIC1111 breaks off where
        a request comes between its page and its API."""
        on_cpu = ["--always-cpu"] if self.is_forge else ["--use-cpu", "all", "--no-half"]
        # Forge serves its own scripts only from allowed folders, and --data-dir takes its own folder off them.
        own = ["--data-dir", str(self.data), "--port", str(self.port), "--gradio-allowed-path", str(self.folder)]
        self.localizations.mkdir(exist_ok=True)
        own += ["--localizations-dir", str(self.localizations)]
        began = time.monotonic()
        with open(self.log, "ab") as log:
            said = log.tell()
            self.process = subprocess.Popen(
                [self.python, "launch.py", *FLAGS, *on_cpu, *own, *self.flags, *flags],
                cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.variables(),
            )  # fmt: skip
        self.wait(lambda: self.has_ended() or STARTED in self.log.read_bytes()[said:], START_SECONDS)
        assert not self.has_ended(), self.said()
        self.wait(lambda: self.ask("/sdapi/v1/sd-models") is not None, START_SECONDS)
        return time.monotonic() - began

    def variables(self) -> dict[str, str]:
        """The WebUI's environment variables: nothing of this process's Python, no network, and our engine or none."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", environment.VARIABLE))}
        engine = {environment.VARIABLE: str(environment.python())}
        no_network = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
        return {
            **kept,
            **(engine if self.has_engine else no_network),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",  # what it says is waited for
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_OFFLINE": "1",
        }

    def install_as_at_start(self, extension: Path) -> tuple[float, str]:
        """Runs install.py as launch.py does at each start. Returns its seconds and what it said."""
        variables = {**self.variables(), "PYTHONPATH": str(self.folder)}
        began = time.monotonic()
        command = [self.python, str(extension / "install.py")]
        said = subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
        return time.monotonic() - began, said.stdout + said.stderr

    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def wait_for_end(self) -> None:
        assert self.process
        self.process.wait(60)

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def packages(self) -> str:
        return subprocess.run([self.python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True).stdout

    def ask(self, path: str, body: Any = None) -> Any:
        return self.ask_to("GET" if body is None else "POST", path, body)

    def ask_to(self, method: str, path: str, body: Any) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.address + path, headers=headers, method=method)
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(request, data, timeout=600) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise Refused(error.read().decode(errors="replace")) from None

    def wait(self, until: Callable[[], Any], seconds: float = 120) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if said := until():
                    return said
            except (OSError, Refused):
                pass  # it starts, or reloads
            time.sleep(0.3)
        code = self.process.poll() if self.process else None
        ended = "" if code is None else f" (it has ended with {code})"
        raise AssertionError(f"it took too long{ended}; the WebUI says: {self.said()}")

    def draw(self, prompt: str, steps: int = 2, **more: Any) -> tuple[bytes, str]:
        """A picture by the WebUI: its pixels, and what the WebUI says that it drew it with."""
        wanted = {"prompt": prompt, "steps": steps, "width": 64, "height": 64, "seed": 7, "sampler_name": "Euler"}
        answer = self.ask("/sdapi/v1/txt2img", {**wanted, **more})
        with Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))) as picture:
            return picture.convert("RGB").tobytes(), json.loads(answer["info"])["infotexts"][0]

    def settings_files(self) -> dict[str, Any]:
        """What the WebUI keeps between starts, written now."""
        self.ask("/sdapi/v1/options", {"samples_save": False})
        names = ("config.json", "ui-config.json")
        return {name: json.loads((self.data / name).read_text()) for name in names}


# Texts of the page, and of what its elements say besides, that were not translated with «». Not what people write.
UNTRANSLATED = """() => {
    const page = document.querySelector("#db_page"), left = [];
    const add = (text) => /[a-zA-Z]{2}/.test(text) && !text.includes("«") && left.push(text.trim());
    const walk = document.createTreeWalker(page, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const own = "textarea, pre, script, style, figcaption, b, dd, li.option, #db_hidden, #db_hidden_settings";
        walk.currentNode.parentElement.closest(own) || add(walk.currentNode.textContent);
    }
    for (const one of page.querySelectorAll("[title], [aria-label], [placeholder]")) {
        one.closest("#db_hidden, #db_hidden_settings") ||
            ["title", "aria-label", "placeholder"].forEach(name => add(one.getAttribute(name) || ""));
    }
    return [...new Set(left)];
}"""


class Visitor(Hands):
    """A person with the WebUI's page open, on the Dreambooth tab."""

    def open(self) -> None:
        self.queued = set[Any]()  # what the page has in gradio's queue
        self.page.on("websocket", self._queues)
        self.page.goto(self.address)
        self.arrive()

    def _queues(self, socket: Any) -> None:
        self.queued.add(socket)
        socket.on("close", lambda closed: self.queued.discard(closed))

    def arrive(self) -> None:
        self.page.locator("#txt2img_prompt").first.wait_for(state="visible", timeout=LONG_MS)
        self.enter("Dreambooth")
        self.see("#db_page[data-db-state]", wait_ms=LONG_MS)

    def rest(self) -> None:
        """Waits, as a person does before they leave a page, until it has asked nothing of gradio's queue for a while.

        Gradio 3 never forgets a page that was left between what it asked of the queue and its turn, and at "Reload UI"
        it waits for it for good: AUTOMATIC1111 does not come back then, with an extension or without. It asks for the
        count of a prompt's tokens 0.8 seconds after the prompt was written.
        """
        quiet_ms = 0
        for _ in range(TURN_MS // LOOK_MS):
            self.page.wait_for_timeout(LOOK_MS)
            quiet_ms = 0 if self.queued else quiet_ms + LOOK_MS
            if quiet_ms >= QUIET_MS:
                return
        raise AssertionError("the page's turn in gradio's queue never came")

    def leave(self) -> None:
        self.rest()
        self.page.close()

    def reload_ui(self, webui: WebUI) -> None:
        """Presses the WebUI's own "Reload UI", which loads the page anew by itself once the WebUI is there again.

        Until then the page asks twice a second whether it is, and where that comes between its page and its API
        AUTOMATIC1111 breaks off, with an extension or without ("Cannot add middleware after an application has
        started"). That takes so much longer on a busy machine that such a request hits it. So the page hears nothing
        before the WebUI has started.
        """
        self.enter("Settings")
        self.rest()
        said = webui.log.stat().st_size

        def ask(route: Any) -> None:
            route.continue_() if STARTED in webui.log.read_bytes()[said:] else route.abort()

        self.page.route(PING, ask)
        with self.page.expect_event("load", timeout=LONG_MS):
            self.page.locator("button#settings_restart_gradio, #settings_restart_gradio button").first.click()
        self.page.unroute(PING)
        self.arrive()

    def used(self) -> str:
        """Presses the button beside the newest result. Returns the prompt that is in txt2img then, and in view."""
        self.see("#db_run .db-use").click()
        field = self.see("#txt2img_prompt textarea")
        return str(field.input_value())

    def enter(self, tab: str) -> None:
        """Opens one of the WebUI's own tabs."""
        bar = self.page.locator("#tabs > .tab-nav button, #tabs > .tab-wrapper button[role=tab]")
        bar.filter(has_text=tab).first.click()


def install_from_page(webui: WebUI, browser: Any, repository: Path, name: str) -> None:
    """Installs an extension as a person does, and ends the WebUI with the button there."""
    page = browser.new_page()
    page.set_default_timeout(LONG_MS)
    page.goto(webui.address)
    page.locator("#txt2img_prompt").first.wait_for(state="visible")
    page.locator("#tabs > .tab-nav button, #tabs > .tab-wrapper button[role=tab]").filter(
        has_text="Extensions"
    ).first.click()
    page.locator("#tabs_extensions button", has_text="Install from URL").first.click()
    page.get_by_label("URL for extension's git repository").fill(repository.as_uri())
    page.get_by_label("Local directory name").fill(name)
    page.locator("#tab_extensions button", has_text="Install").locator("visible=true").last.click()
    page.locator("#extension_install_result", has_text="Installed into").first.wait_for()
    page.locator("#tabs_extensions button", has_text="Installed").first.click()
    page.locator("#tab_extensions button", has_text="Apply and").first.click()
    webui.wait_for_end()
    page.close()


def snapshot(source: Path, target: Path) -> Path:
    """The working tree as a git repository of its own, as it would be published."""

    def git(*arguments: str, cwd: Path) -> str:
        options = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        done = subprocess.run(["git", *options, *arguments], cwd=cwd, capture_output=True, text=True, check=True)
        return done.stdout

    target.mkdir()
    for name in git("ls-files", "-co", "--exclude-standard", cwd=source).splitlines():
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((source / name).read_bytes())
    git("init", "-q", cwd=target)
    git("add", "-A", cwd=target)
    git("commit", "-qm", "as it is now", cwd=target)
    return target
