"""What each route of the HTTP API does: the page's and scripts' way into the service. Knows nothing of HTTP but paths.

A parameter that is a dict is the request's JSON body, as FastAPI reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from dreambooth.core import project, run, schema, settings
from dreambooth.core.errors import UserError
from dreambooth.core.origin import Origin
from dreambooth.core.project import Folders, Project
from dreambooth.core.run import Job
from dreambooth.core.settings import Settings
from dreambooth.service import environment, errands, installation, launcher, models, queue, runs

_MOST_EVENT_BYTES = 4_000_000  # of events in one answer
REQUESTS = ("pause", "stop", "discard", "save", "preview")

Answer = dict[str, Any]
Route = tuple[str, str, Callable[..., Any]]


class Door(Protocol):
    """What the API needs of the host."""

    name: str
    version: str
    token: str

    def folders(self) -> Folders: ...
    def checkpoints(self) -> list[tuple[str, Path]]: ...
    def refresh(self) -> None: ...
    def describe(self, picture: Path, captioner: str) -> str: ...
    def admits(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> bool: ...


class Routes:
    """Routes of one kind of thing. The folders are asked for anew each time: a flag or setting may have moved them."""

    def __init__(self, host: Door) -> None:
        self.host = host

    @property
    def folders(self) -> Folders:
        return self.host.folders()

    def open(self, name: str) -> Project:
        return project.open_project(self.folders, name)


class Machine(Routes):
    """What concerns no model: the engine, the settings there are, the WebUI's checkpoints."""

    def table(self) -> list[Route]:
        return [
            ("GET", "/status", self.status),
            ("POST", "/engine/setup", self.set_up),
            ("GET", "/engine/log", self.log),
            ("GET", "/engine/check", self.check),
            ("GET", "/settings", self.settings),
            ("POST", "/settings/check", self.check_settings),
            ("GET", "/presets", self.presets),
            ("GET", "/checkpoints", self.checkpoints),
            ("POST", "/refresh", self.refresh),
            ("POST", "/inspect", self.inspect),
        ]

    def status(self) -> Answer:
        """The host, where models lie, how the engine is, and what runs and waits."""
        running = [job.name for job in queue.all_jobs(self.folders) if job.is_alive()]
        return {
            "host": self.host.name,
            "version": self.host.version,
            "models_folder": str(self.folders.projects),
            "engine": installation.state(),
            "running": running,
            "waiting": queue.waiting(self.folders),
        }

    def set_up(self) -> Answer:
        """Sets the engine's environment up in the background, or mends it."""
        installation.begin()
        return installation.state()

    def log(self) -> Answer:
        """The end of what setting it up has said."""
        return {"log": installation.engine_log()}

    def check(self) -> Answer:
        """The engine's self-check: its packages and the device."""
        return environment.check()

    def settings(self) -> Answer:
        """The JSON schema of every setting, and of how a checkpoint is to be read."""
        return {"settings": schema.json_schema(Settings), "origin": schema.json_schema(Origin)}

    def check_settings(self, body: dict[str, Any]) -> Answer:
        """Every reason why `settings` would be refused; nothing is written."""
        return {"problems": models.problems(models.changed({}, _object(body, "settings")))}

    def presets(self) -> Answer:
        """The presets, with a reason for each value."""
        return {"presets": models.preset_list()}

    def checkpoints(self) -> Answer:
        """The checkpoints that a model can be made from."""
        return {"checkpoints": [{"title": title, "path": str(path)} for title, path in self.host.checkpoints()]}

    def refresh(self) -> Answer:
        """The same after looking anew, in the WebUI's lists too."""
        self.host.refresh()
        return self.checkpoints()

    def inspect(self, body: dict[str, Any]) -> Answer:
        """What the checkpoint or LoRA at `path` is, from its header."""
        return models.inspect(Path(text(body, "path")))


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
            ("GET", "/models/{name}/outputs", self.outputs),
        ]

    def all(self) -> Answer:
        """All models."""
        return {"models": models.listing(self.folders)}

    def create(self, body: dict[str, Any]) -> Answer:
        """A new model: `name`, `source` (a file or Diffusers folder); if wanted `preset`, `settings` and `origin`."""
        flat = models.changed({}, _object(body, "settings"))
        if preset := text(body, "preset", optional=True):
            flat = models.with_preset(preset, {}, flat)
        source = Path(text(body, "source"))
        return models.create(self.folders, text(body, "name"), source, flat, _object(body, "origin"))

    def one(self, name: str) -> Answer:
        """One model."""
        return models.summary(self.open(name))

    def delete(self, name: str) -> Answer:
        """Moves a model to the trash; what it wrote stays. Says how many bytes emptying the trash would free."""
        return models.delete(self.folders, name)

    def rename(self, name: str, body: dict[str, Any]) -> Answer:
        """Renames a model: `to`."""
        return models.rename(self.folders, name, text(body, "to"))

    def duplicate(self, name: str, body: dict[str, Any]) -> Answer:
        """A copy called `to`, with settings and pictures and without runs."""
        return models.duplicate(self.folders, name, text(body, "to"))

    def settings(self, name: str) -> Answer:
        """A model's settings, by dotted key."""
        return {"settings": schema.without_secrets(Settings, self.open(name).settings())}

    def replace_settings(self, name: str, body: dict[str, Any]) -> Answer:
        """Makes `settings` the model's own; what is left out takes its default."""
        given = models.changed({}, _object(body, "settings"))
        return {"settings": _written(self.open(name), given)}

    def change_settings(self, name: str, body: dict[str, Any]) -> Answer:
        """Changes those of the model's settings that `settings` has."""
        opened = self.open(name)
        changed = models.changed(opened.settings(), _object(body, "settings"))
        return {"settings": _written(opened, changed)}

    def preset(self, name: str, body: dict[str, Any]) -> Answer:
        """A preset over the model's settings, and those of the body above both."""
        opened = self.open(name)
        over = models.changed({}, _object(body, "settings"))
        flat = models.with_preset(text(body, "preset"), opened.settings(), over)
        return {"settings": _written(opened, flat)}

    def take_over(self, name: str, body: dict[str, Any]) -> Answer:
        """Takes over another trainer's settings from the file or folder `path`; tells the fate of each."""
        opened = self.open(name)
        kind, flat, report = models.imported(opened, Path(text(body, "path")), environment.python())
        return {"kind": kind, "settings": _written(opened, flat), "report": report}

    def outputs(self, name: str) -> Answer:
        """What the model's runs wrote and is still there, newest first."""
        return {"outputs": runs.outputs(self.open(name))}


def _written(opened: Project, flat: Mapping[str, Any]) -> Answer:
    """Writes a model's settings; what is shown of them holds no secrets, and what was shown so is no new one."""
    own = opened.settings() if schema.HIDDEN in flat.values() else {}
    written = models.write_settings(opened, schema.with_secrets(Settings, flat, own))
    return schema.without_secrets(Settings, written)


class Jobs(Routes):
    """Runs, and the short jobs beside them."""

    def table(self) -> list[Route]:
        run_path, errand_path = "/models/{name}/runs/{number}", "/models/{name}/errands/{number}"
        return [
            ("GET", "/runs", self.all_runs),
            ("GET", "/models/{name}/runs", self.runs),
            ("POST", "/models/{name}/runs", self.start),
            ("GET", run_path, self.run),
            ("GET", f"{run_path}/events", self.run_events),
            ("GET", f"{run_path}/log", self.run_log),
            ("GET", f"{run_path}/settings", self.run_settings),
            ("POST", f"{run_path}/resume", self.resume),
            ("POST", f"{run_path}/request", self.request),
            ("POST", "/models/{name}/errands", self.begin_errand),
            ("GET", errand_path, self.errand),
            ("GET", f"{errand_path}/events", self.errand_events),
            ("POST", f"{errand_path}/stop", self.stop_errand),
            ("POST", "/downloads", self.download),
            ("GET", "/downloads/{number}", self.downloaded),
            ("POST", "/downloads/{number}/stop", self.stop_download),
        ]

    def all_runs(self) -> Answer:
        """The runs of all models."""
        return {"runs": [runs.summary(job) for job in run.all_runs(self.folders)]}

    def runs(self, name: str) -> Answer:
        """The runs of a model, oldest first."""
        return {"runs": [runs.summary(job) for job in run.runs(self.open(name))]}

    def start(self, name: str, body: dict[str, Any] | None = None) -> Answer:
        """A new run with the model's settings, and those of the body over them, in the queue."""
        opened = self.open(name)
        job = launcher.new_run(self.folders, opened, self._settings(opened, body or {}))
        return self._submit(job, runs.summary)

    def run(self, name: str, number: int) -> Answer:
        """How a run is."""
        return runs.summary(self._run(name, number))

    def run_events(self, name: str, number: int, offset: int = 0) -> Answer:
        """What happened since `offset`, as the run's folder has it, and the offset to ask with next; of much that
        happened, the first part."""
        return _events(self._run(name, number), offset)

    def run_log(self, name: str, number: int) -> Answer:
        """The end of the engine's log."""
        return {"log": installation.tail(self._run(name, number).log, 50_000)}

    def run_settings(self, name: str, number: int) -> Answer:
        """The settings that the run was started with, and what has been changed since."""
        return {"settings": schema.without_secrets(Settings, self._run(name, number).settings())}

    def resume(self, name: str, number: int, body: dict[str, Any] | None = None) -> Answer:
        """Puts a run in the queue again, from its newest state, or from that of `from_step`; `settings` that may change
        then are taken, others refused."""
        job, body = self._run(name, number), body or {}
        runs.check_resumable(job)
        runs.change_settings(job, schema.flatten(_object(body, "settings")))
        if (step := body.get("from_step")) is not None:
            if isinstance(step, bool) or not isinstance(step, int):
                raise UserError(f"from_step: it must be a whole number (it is {step!r}).")
            runs.go_back(self.folders, job, step)
        return self._submit(job, runs.summary)

    def request(self, name: str, number: int, body: dict[str, Any]) -> Answer:
        """Asks a run that is at work: `request` is pause, stop, discard, save or preview."""
        what = text(body, "request")
        if what not in REQUESTS:
            raise UserError(f"request: {what!r} is none of {', '.join(REQUESTS)}.")
        return runs.ask(self._run(name, number), what)  # type: ignore[arg-type]

    def begin_errand(self, name: str, body: dict[str, Any]) -> Answer:
        """A short job: `kind` is check, class-images, generate, export or tokens, with its own fields beside it."""
        opened, kind = self.open(name), text(body, "kind")
        chosen, fields = errands.errand(opened, kind, body, self._settings(opened, body))
        job = launcher.new_errand(self.folders, opened, kind, chosen, **fields)
        return self._submit(job, runs.outcome)

    def errand(self, name: str, number: int) -> Answer:
        """How a short job is, and its result once it is done."""
        return runs.outcome(self._errand(name, number))

    def errand_events(self, name: str, number: int, offset: int = 0) -> Answer:
        """The same of a short job as of a run."""
        return _events(self._errand(name, number), offset)

    def stop_errand(self, name: str, number: int) -> Answer:
        """Asks a short job to stop."""
        return runs.ask(self._errand(name, number), "stop")

    def download(self, body: dict[str, Any]) -> Answer:
        """Fetches a model of the hub; its result's path is a source for a new model of the name."""
        source = text(body, "source")
        model = models.hub_model(self.folders, text(body, "name"), source)
        if model is None:
            raise UserError(f"source: {source!r} is no model of the hub, which are called owner/name.")
        revision = text(body, "revision", optional=True)
        return self._submit(launcher.new_download(self.folders, model, revision), runs.outcome)

    def downloaded(self, number: int) -> Answer:
        """How a download is; its result has the path."""
        return runs.outcome(numbered(run.downloads(self.folders), number, "download"))

    def stop_download(self, number: int) -> Answer:
        """Asks a download to stop."""
        return runs.ask(numbered(run.downloads(self.folders), number, "download"), "stop")

    def _settings(self, opened: Project, body: Answer) -> Settings:
        own = opened.settings()
        return settings.parse(schema.with_secrets(Settings, models.changed(own, _object(body, "settings")), own))

    def _run(self, name: str, number: int) -> Job:
        return numbered(run.runs(self.open(name)), number, "run")

    def _errand(self, name: str, number: int) -> Job:
        return numbered(run.errands(self.open(name)), number, "errand")

    def _submit(self, job: Job, show: Callable[[Job], Answer]) -> Answer:
        try:
            queue.submit(job)
        except UserError:
            launcher.forget(job)
            raise
        return show(job)


def _events(job: Job, offset: int) -> Answer:
    events, offset = job.events(max(0, offset), _MOST_EVENT_BYTES)
    return {"events": events, "offset": offset, "status": job.status()}


def numbered(jobs: list[Job], number: int, what: str) -> Job:
    for job in jobs:
        if int(job.folder.name) == number:
            return job
    raise UserError(f"There is no {what} {number} here.")


def text(body: Answer, key: str, *, optional: bool = False) -> str:
    value = body.get(key, "")
    if not isinstance(value, str) or "\x00" in value:
        raise UserError(f"{key}: it is not text.")
    if not value.strip() and not optional:
        raise UserError(f"{key}: it is missing.")
    return value


def _object(body: Answer, key: str) -> Answer:
    value = body.get(key) or {}
    if not isinstance(value, dict):
        raise UserError(f"{key}: it must be a JSON object.")
    return value
