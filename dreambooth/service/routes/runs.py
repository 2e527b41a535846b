"""Routes of runs: starting them, looking at them, and what may be asked of them."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from fastapi import Response

from dreambooth.core import job_list, project, schema
from dreambooth.core.errors import UserError
from dreambooth.core.job_folder import Job
from dreambooth.core.settings import Settings
from dreambooth.service import installation, launcher, report, resume_run, runs
from dreambooth.service.routes.base import Answer, Route, Routes, an_object, events, numbered, only, text

REQUESTS = ("pause", "stop", "discard", "save", "preview")


class Runs(Routes):
    def table(self) -> list[Route]:
        one = "/models/{name}/runs/{number}"
        return [
            ("GET", "/runs", self.all),
            ("GET", "/models/{name}/runs", self.of_model),
            ("POST", "/models/{name}/runs", self.start),
            ("GET", one, self.one),
            ("GET", f"{one}/events", self.events),
            ("GET", f"{one}/log", self.log),
            ("GET", f"{one}/settings", self.settings),
            ("GET", f"{one}/differences", self.differences),
            ("POST", f"{one}/resume", self.resume),
            ("POST", f"{one}/request", self.request),
            ("GET", "/models/{name}/report", self.report),
        ]

    def all(self) -> Answer:
        """The runs of all models; `problems` says which models are damaged."""
        return runs.of_all(self.folders)

    def of_model(self, name: str) -> Answer:
        """The runs of a model, oldest first."""
        return {"runs": [runs.summary(job) for job in job_list.runs(self.open(name))]}

    def start(self, name: str, body: dict[str, Any] | None = None) -> Answer:
        """A new run with the model's settings, and those of the body over them, in the queue."""
        opened = self.open(name)
        job = launcher.new_run(self.folders, opened, self.asked(opened, only(body or {}, "settings")))
        return self.submit(job, runs.summary)

    def one(self, name: str, number: int) -> Answer:
        """How a run is."""
        return runs.summary(self._run(name, number))

    def events(self, name: str, number: int, offset: int = 0) -> Answer:
        """The run's events since `offset`, and the offset to ask with next; where there are many, the first of them."""
        return events(self._run(name, number), offset)

    def log(self, name: str, number: int) -> Answer:
        """The end of the engine's log."""
        return {"log": installation.tail(self._run(name, number).log, 50_000)}

    def settings(self, name: str, number: int) -> Answer:
        """The settings that the run was started with, and what has been changed since."""
        return {"settings": schema.without_secrets(Settings, self._run(name, number).settings())}

    def differences(self, name: str, number: int) -> Answer:
        """How the model's own settings differ from the run's, with the reason (`why_not`) of each that must stay."""
        return resume_run.prospect(self._run(name, number), self.open(name))

    def resume(self, name: str, number: int, body: dict[str, Any] | None = None) -> Answer:
        """Puts a run in the queue again, from its newest state, or from that of `from_step`. `settings` that may still
        change are taken, others refused. With `model_settings` the run takes the model's own where they may change."""
        job, body = self._run(name, number), only(body or {}, "settings", "model_settings", "from_step")
        resume_run.check_resumable(job)
        given = schema.flatten(an_object(body, "settings")) if body.get("settings") else {}
        if body.get("model_settings"):
            if given:
                raise UserError("settings, model_settings: these exclude each other; give one.")
            given = resume_run.takeable(resume_run.differences(job, self.open(name)))
        project.check_places(given, job.settings)
        step = body.get("from_step")
        if step is not None and (isinstance(step, bool) or not isinstance(step, int)):
            raise UserError(f"from_step: it must be a whole number (it is {step!r}).")
        resume_run.prepare(self.folders, job, given, step)
        return self.submit(job, runs.summary)

    def request(self, name: str, number: int, body: dict[str, Any]) -> Answer:
        """Asks something of a run at work: `request` is pause, stop, discard, save or preview. The first three take a
        run that waits out of the queue."""
        what = text(only(body, "request"), "request")
        if what not in REQUESTS:
            raise UserError(f"request: {what!r} is none of {', '.join(REQUESTS)}.")
        return runs.ask(self._run(name, number), what)  # type: ignore[arg-type]

    def report(self, name: str, run: int) -> Response:
        """What is needed to report a problem with the run `run`, a .zip file without pictures and secrets."""
        job = self._run(name, run)
        headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(report.name(job), safe='')}"}
        return Response(report.build(job), media_type="application/zip", headers=headers)

    def _run(self, name: str, number: int) -> Job:
        return numbered(job_list.runs(self.open(name)), number, "run")
