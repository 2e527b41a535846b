"""Routes that concern no model: the engine, the settings there are, the WebUI's checkpoints."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from dreambooth.core import job_list, reference, settings
from dreambooth.core.errors import UserError
from dreambooth.core.models.load_overrides import Origin
from dreambooth.core.settings import Settings
from dreambooth.service import environment, installation, models, performance, queue
from dreambooth.service.routes.base import Answer, Route, Routes, an_object, only, text

_checking = threading.Lock()


class Machine(Routes):
    """What concerns no model: the engine, the settings there are, the WebUI's checkpoints."""

    def table(self) -> list[Route]:
        return [
            ("GET", "/status", self.status),
            ("POST", "/engine/setup", self.set_up),
            ("GET", "/engine/log", self.log),
            ("POST", "/engine/check", self.check),
            ("GET", "/settings", self.settings),
            ("POST", "/settings/check", self.check_settings),
            ("GET", "/presets", self.presets),
            ("POST", "/performance", self.performance),
            ("GET", "/checkpoints", self.checkpoints),
            ("POST", "/refresh", self.refresh),
            ("POST", "/inspect", self.inspect),
        ]

    def status(self) -> Answer:
        """The host with its samplers, where models lie, how the engine is, and what runs and waits."""
        running = [job.name for job in job_list.all_jobs(self.folders) if job.is_alive()]
        return {
            "host": self.host.name,
            "version": self.host.version,
            "samplers": list(self.host.samplers),
            "models_folder": str(self.folders.projects),
            "engine": installation.state(),
            "running": running,
            "waiting": queue.waiting(self.folders),
        }

    def set_up(self) -> Answer:
        """Sets up or repairs the engine's environment in the background."""
        installation.begin()
        return installation.state()

    def log(self) -> Answer:
        """The end of the set-up's log."""
        return {"log": installation.engine_log()}

    def check(self) -> Answer:
        """The engine's self-check: its packages and the device. It starts a process; one at a time."""
        if not _checking.acquire(blocking=False):
            raise UserError("The engine is being checked already; wait for the answer.")
        try:
            return environment.check()
        finally:
            _checking.release()

    def settings(self) -> Answer:
        """The JSON schema of every setting, and of how a checkpoint is to be read."""
        return {"settings": reference.json_schema(Settings), "origin": reference.json_schema(Origin)}

    def check_settings(self, body: dict[str, Any]) -> Answer:
        """Every reason why `settings` would be refused. Nothing is written."""
        return {
            "problems": models.problems(
                models.changed({}, an_object(only(body, "settings", needed="settings"), "settings"))
            )
        }

    def presets(self) -> Answer:
        """The presets, with a reason for each value."""
        return {"presets": models.preset_list()}

    def performance(self, body: dict[str, Any] | None = None) -> Answer:
        """Which of `settings` to change for a `card`, such as 8GB, and why, for each family and method; without a
        card for this machine's, and where it has none for each usual size."""
        body = only(body or {}, "card", "settings")
        card = performance.card_bytes(text(body, "card", optional=True), label="card")
        chosen = settings.parse(models.changed({}, an_object(body, "settings")))
        return {"plans": performance.of_every_family(chosen, card)}

    def checkpoints(self) -> Answer:
        """The checkpoints that a model can be made from."""
        return {"checkpoints": [{"title": title, "path": str(path)} for title, path in self.host.checkpoints()]}

    def refresh(self) -> Answer:
        """The same, after a new look at the folders, which refreshes the WebUI's lists too."""
        self.host.refresh()
        return self.checkpoints()

    def inspect(self, body: dict[str, Any]) -> Answer:
        """What the checkpoint, LoRA or embedding at `path` is, from its header."""
        return models.inspect(Path(text(only(body, "path"), "path")))
