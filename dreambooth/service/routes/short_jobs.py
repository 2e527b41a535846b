"""Routes of the short jobs beside the runs, and of downloads from the hub."""

from __future__ import annotations

from typing import Any

from dreambooth.core import job_list
from dreambooth.core.errors import UserError
from dreambooth.core.job_folder import Job
from dreambooth.service import captioning, downloads, launcher, models, runs, short_jobs, txt2img
from dreambooth.service.routes.base import Answer, Route, Routes, events, numbered, only, text


class Errands(Routes):
    def table(self) -> list[Route]:
        one = "/models/{name}/errands/{number}"
        return [
            ("POST", "/models/{name}/errands", self.begin),
            ("GET", one, self.one),
            ("GET", f"{one}/events", self.events),
            ("POST", f"{one}/stop", self.stop),
            ("POST", "/downloads", self.download),
            ("GET", "/downloads/{number}", self.downloaded),
            ("POST", "/downloads/{number}/stop", self.stop_download),
        ]

    def begin(self, name: str, body: dict[str, Any]) -> Answer:
        """A short job: `kind` is check, class-images, generate, export, tokens or caption, with its own fields beside
        it. An export has `to`, and generate a `prompt`; each takes `weights`, `base`, or `run` and `from_step` for a
        state, which can be exported without a `to`. An export merges the result into its checkpoint at the weight
        `merge`, or into another, `onto`, or writes a LoRA of `rank`, which holds the share `held` of what was learned.
        An embedding is written as it is, as a .safetensors or .pt file.
        A `sheet` of generate has such `weights` as rows, and `lora_weights`.
        Pictures are drawn by the WebUI's own txt2img where `library` is webui, with one of the `samplers` that /status
        names as `sampler`.
        Captions are written `with` the WebUI's BLIP or DeepDanbooru, or with a captioning model, a folder or one of the
        hub, for the pictures of a `concept`, or of all, that have none; with `over` for all pictures."""
        opened, kind = self.open(name), text(body, "kind")
        only(body, "kind", "settings", *short_jobs.FIELDS.get(kind, body))
        if kind == "generate" and txt2img.is_asked(body, self.host):
            chosen, fields = txt2img.fields(opened, body, self.host)
            return runs.outcome(txt2img.begin(self.folders, opened, chosen, fields, self.host))
        settings = self.asked(opened, body)
        if kind == "caption" and captioning.is_webuis(body, self.host):
            fields = captioning.fields(settings, body, captioners=self.host.captioners)
            return runs.outcome(captioning.begin(self.folders, opened, settings, fields, self.host))
        chosen, fields = short_jobs.errand(opened, kind, body, settings)
        job = launcher.new_errand(self.folders, opened, kind, chosen, **fields)
        return self.submit(job, runs.outcome)

    def one(self, name: str, number: int) -> Answer:
        """How a short job is, and its result once it is done."""
        return runs.outcome(self._errand(name, number))

    def events(self, name: str, number: int, offset: int = 0) -> Answer:
        """The events of a short job, as those of a run."""
        return events(self._errand(name, number), offset)

    def stop(self, name: str, number: int) -> Answer:
        """Asks a short job to stop; one that waits for its turn ends at once."""
        return runs.ask(self._errand(name, number), "stop")

    def download(self, body: dict[str, Any]) -> Answer:
        """Downloads the model `source` of the hub for a new model `name`, whose source is then the path in the
        download's result. `revision` is a branch, tag or commit. Where that download is under way already, it is the
        answer."""
        source = text(only(body, "name", "source", "revision"), "source")
        revision = text(body, "revision", optional=True)
        model = models.hub_model(self.folders, text(body, "name"), source, revision)
        if model is None:
            raise UserError(f"source: {source!r} is no model of the hub, which are called owner/name.")
        return runs.outcome(downloads.begin(self.folders, model))

    def downloaded(self, number: int) -> Answer:
        """How a download is; its result has the path."""
        return runs.outcome(numbered(job_list.downloads(self.folders), number, "download"))

    def stop_download(self, number: int) -> Answer:
        """Asks a download to stop."""
        return runs.ask(numbered(job_list.downloads(self.folders), number, "download"), "stop")

    def _errand(self, name: str, number: int) -> Job:
        return numbered(job_list.errands(self.open(name)), number, "errand")
