"""Routes of the models that are being taught, and their settings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dreambooth.core import schema
from dreambooth.core.project import Project
from dreambooth.core.settings import Settings
from dreambooth.service import (
    continue_from,
    deleting,
    environment,
    import_settings,
    models,
    notice,
    performance,
    runs,
    settings_lock,
    settings_undo,
)
from dreambooth.service.routes.base import Answer, Route, Routes, a_switch, an_object, only, text


class Models(Routes):
    """Models and their settings."""

    def table(self) -> list[Route]:
        return [
            ("GET", "/models", self.all),
            ("POST", "/models", self.create),
            ("GET", "/models/{name}", self.one),
            ("DELETE", "/models/{name}", self.delete),
            ("POST", "/models/{name}/rename", self.rename),
            ("POST", "/models/{name}/duplicate", self.duplicate),
            ("GET", "/models/{name}/settings", self.settings),
            ("PUT", "/models/{name}/settings", self.replace_settings),
            ("PATCH", "/models/{name}/settings", self.change_settings),
            ("POST", "/models/{name}/preset", self.preset),
            ("POST", "/models/{name}/import", self.take_over),
            ("POST", "/models/{name}/undo", self.undo),
            ("POST", "/models/{name}/notice", self.notice),
            ("POST", "/models/{name}/performance", self.performance),
            ("GET", "/models/{name}/outputs", self.outputs),
            ("POST", "/models/{name}/outputs/delete", self.delete_output),
            ("POST", "/models/{name}/learn-on", self.learn_on),
        ]

    def all(self) -> Answer:
        """All models."""
        return {"models": models.listing(self.folders)}

    def create(self, body: dict[str, Any]) -> Answer:
        """A new model: `name`, `source` (a file or Diffusers folder); optional: `preset`, `settings`, `origin`."""
        only(body, "name", "source", "preset", "settings", "origin")
        flat = models.changed({}, an_object(body, "settings"))
        if preset := text(body, "preset", optional=True):
            flat = models.with_preset(preset, {}, flat)
        source = Path(text(body, "source"))
        return models.create(self.folders, text(body, "name"), source, flat, an_object(body, "origin"))

    def one(self, name: str) -> Answer:
        """One model."""
        return models.summary(self.open(name))

    def delete(self, name: str) -> Answer:
        """Moves a model to the trash; what it wrote stays. Says how many bytes emptying the trash would free."""
        return models.delete(self.folders, name)

    def rename(self, name: str, body: dict[str, Any]) -> Answer:
        """Renames a model: `to`."""
        return models.rename(self.folders, name, text(only(body, "to"), "to"))

    def duplicate(self, name: str, body: dict[str, Any]) -> Answer:
        """A copy called `to`, with settings and pictures and without runs."""
        return models.duplicate(self.folders, name, text(only(body, "to"), "to"))

    def settings(self, name: str) -> Answer:
        """A model's settings, by dotted key."""
        return {"settings": schema.without_secrets(Settings, self.open(name).settings())}

    def replace_settings(self, name: str, body: dict[str, Any]) -> Answer:
        """Makes `settings` the model's own; what is left out takes its default."""
        given = models.changed({}, an_object(only(body, "settings", needed="settings"), "settings"))
        return {"settings": _written(self.open(name), given)}

    def change_settings(self, name: str, body: dict[str, Any]) -> Answer:
        """Changes those of the model's settings that `settings` has."""
        opened = self.open(name)
        only(body, "settings", needed="settings")
        with settings_lock.changing(opened):
            changed = models.changed(opened.settings(), an_object(body, "settings"))
            return {"settings": _written(opened, changed)}

    def preset(self, name: str, body: dict[str, Any]) -> Answer:
        """Puts a preset over the model's settings, and `settings` of the body over both."""
        opened = self.open(name)
        over = models.changed({}, an_object(only(body, "preset", "settings"), "settings"))
        with settings_lock.changing(opened):
            flat = models.with_preset(text(body, "preset"), opened.settings(), over)
            return {"settings": _written(opened, flat)}

    def take_over(self, name: str, body: dict[str, Any]) -> Answer:
        """Takes over another trainer's settings from the file or folder `path`; says of each what became of it."""
        opened = self.open(name)
        path = Path(text(only(body, "path"), "path"))
        kind, written, report = import_settings.take_over(opened, path, environment.python)
        return {"kind": kind, "settings": schema.without_secrets(Settings, written), "report": report}

    def undo(self, name: str) -> Answer:
        """Puts back the settings from before the last import, or the page's last removal of a concept."""
        opened = self.open(name)
        settings_undo.undo(opened)
        return {"settings": schema.without_secrets(Settings, opened.settings())}

    def notice(self, name: str) -> Answer:
        """Sends a test message to the model's webhook (reporting.webhook_url), as a run sends one at its end."""
        return {"done": notice.send(self.open(name).settings()[notice.WEBHOOK])}

    def performance(self, name: str, body: dict[str, Any] | None = None) -> Answer:
        """Which settings fit a `card`, such as 8GB (default: this machine's), and why. `settings` are put over the
        model's. With `apply` these, and what the card needs changed, become the model's own."""
        opened, body = self.open(name), only(body or {}, "card", "settings", "apply")
        card = performance.card_bytes(text(body, "card", optional=True), label="card")
        to_apply = a_switch(body, "apply")
        over = partial(self.over, body=body)
        plan = performance.for_model(opened, over, card, label="card", to_apply=to_apply)
        return performance.answer(opened, plan, card, applied=to_apply)

    def outputs(self, name: str) -> Answer:
        """The results of the model's runs that are still there, those of the newest run first. `step` is that of the
        state that a file was exported from; `best` marks the result of the moment when the run was best."""
        return {"outputs": runs.outputs(self.open(name))}

    def delete_output(self, name: str, body: dict[str, Any]) -> Answer:
        """Deletes the result `path` for good, with the files that belong to it, such as an embedding beside a LoRA.
        Refused for a file that no run of the model wrote, that was changed since, or that is needed: a model was made
        from it, or a job works with it. `bytes` is how much that freed."""
        done = deleting.delete(self.folders, self.open(name), text(only(body, "path"), "path"))
        self.host.refresh()
        return done

    def learn_on(self, name: str, body: dict[str, Any]) -> Answer:
        """Lets the next run begin with the result `path`: a LoRA or an embedding through the model's settings, a
        checkpoint through a new model like this one. The answer names that `model` and what was `done`."""
        return continue_from.learn_on(self.folders, self.open(name), text(only(body, "path"), "path"))


def _written(opened: Project, flat: Mapping[str, Any]) -> Answer:
    """Writes a model's settings; what is shown of them holds no secrets, and what was shown so is no new one."""
    with settings_lock.changing(opened):
        own = opened.settings() if schema.HIDDEN in flat.values() else {}
        written = models.write_settings(opened, schema.with_secrets(Settings, flat, own))
    return schema.without_secrets(Settings, written)
