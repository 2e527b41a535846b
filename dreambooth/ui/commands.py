"""What each command does: a few lines over the service, and an answer that can be shown or printed as JSON."""

from __future__ import annotations

import argparse
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreambooth.core import job_folder, job_list, project, reference, schema, settings
from dreambooth.core.errors import UserError
from dreambooth.core.files import paths
from dreambooth.core.install_paths import PROJECT
from dreambooth.core.job_folder import Job
from dreambooth.core.models.load_overrides import Origin
from dreambooth.core.project import Folders
from dreambooth.core.settings import Settings
from dreambooth.core.settings.on_resume import Difference
from dreambooth.host import standalone
from dreambooth.service import (
    demo,
    environment,
    installation,
    launcher,
    models,
    page_environment,
    preflight,
    queue,
    relocation,
    resume_run,
)
from dreambooth.service import runs as service_runs
from dreambooth.ui.terminal import Terminal

Result = dict[str, Any]


def setup(options: argparse.Namespace, terminal: Terminal) -> Result:
    report = installation.set_up(terminal.show, development=options.development)
    page_environment.repair(terminal.show)
    return report


def inspect(options: argparse.Namespace, terminal: Terminal) -> Result:
    return models.inspect(paths.named(options.file, "FILE"))


def show_settings(options: argparse.Namespace, terminal: Terminal) -> Result:
    """Every setting that there is; of a model its own."""
    if options.name is None:
        return reference.json_schema(Settings)
    opened = project.open_project(folders(options), options.name)
    return {"name": opened.name, "settings": schema.without_secrets(Settings, opened.settings())}


def create(options: argparse.Namespace, terminal: Terminal) -> Result:
    origin = {leaf.key: getattr(options, leaf.key) for leaf in schema.leaves(Origin)}
    found = folders(options, may_be_new=True)
    created = project.create(found, options.name, _source(options, found, terminal), settings_over({}, options), origin)
    return {"name": created.name, "folder": str(created.folder), "source": str(created.source), "about": created.about}


def _source(options: argparse.Namespace, found: Folders, terminal: Terminal) -> Path:
    """The checkpoint that a person named; what is no path but could be a model of the hub is fetched from there."""
    file = paths.named(options.source, "--source")
    model = models.hub_model(found, options.name, options.source, options.revision, label="--revision")
    if model is None:
        return file
    python = environment.ensure(terminal.show)
    return Path(work(launcher.new_download(found, model), python, terminal)["path"])


def check(options: argparse.Namespace, terminal: Terminal) -> Result:
    sheet = None if options.sheet is None else paths.named(options.sheet, "--sheet")
    if sheet and (sheet.suffix.lower() not in (".html", ".png") or not sheet.parent.is_dir()):
        raise UserError(f"--sheet: {sheet} must be a .html or .png file in a folder that exists.")
    return errand(options, terminal, "check", merged_settings(options), sheet=str(sheet or ""))


def class_images(options: argparse.Namespace, terminal: Terminal) -> Result:
    preflight.check_new(project.open_project(folders(options), options.name), merged_settings(options))
    return errand(options, terminal, "class-images", merged_settings(options))


def train(options: argparse.Namespace, terminal: Terminal) -> Result:
    opened, merged = project.open_project(folders(options), options.name), merged_settings(options)
    preflight.check_new(opened, merged, folders(options))  # the engine may have to be set up first
    python = environment.ensure(terminal.show)
    job = launcher.new_run(folders(options), opened, merged)
    terminal.say(f"Run {job.name}: {job.folder}")
    return work(job, python, terminal)


def resume(options: argparse.Namespace, terminal: Terminal) -> Result:
    job = job_list.find(folders(options), options.run)
    resume_run.check_resumable(job)
    given, differing = given_settings(options), list[Difference]()
    if options.model_settings:
        if given:
            raise UserError("--model-settings: it takes the model's own settings; give none beside it.")
        differing = resume_run.differences(job, project.open_project(folders(options), job.read()["model"]))
        given = resume_run.takeable(differing)
    python, before = environment.ensure(terminal.show), job.states()  # what is changed now stays so, whatever comes
    for key, value in resume_run.prepare(folders(options), job, given, options.from_step, label="--{}").items():
        terminal.say(f"From here on: {key} {value}")
    if moved := sorted({*before} - {*job.states()}):
        terminal.say(f"In the trash now, {folders(options).trash}: its states after steps {', '.join(map(str, moved))}")
    for one in differing:
        if one.why_not:
            terminal.say(f"Stays: {one.key} {one.now} (the model has {one.given}), as {one.why_not}")
    return work(job, python, terminal)


def runs(options: argparse.Namespace, terminal: Terminal) -> Result:
    found = folders(options)
    return {**service_runs.of_all(found), "folder": str(found.projects)}


def pause(options: argparse.Namespace, terminal: Terminal) -> Result:
    return _ask(_meant(options), "pause")


def stop(options: argparse.Namespace, terminal: Terminal) -> Result:
    return _ask(_meant(options), "discard" if options.discard else "stop")


def save(options: argparse.Namespace, terminal: Terminal) -> Result:
    return _ask(job_list.find(folders(options), options.run), "save")


def preview(options: argparse.Namespace, terminal: Terminal) -> Result:
    return _ask(job_list.find(folders(options), options.run), "preview")


def run_demo(options: argparse.Namespace, terminal: Terminal) -> Result:
    out = demo.free_folder(options.out)
    python = environment.ensure(terminal.show)
    return demo.run(out, python, terminal.say, terminal.event)


def open_page(options: argparse.Namespace, terminal: Terminal) -> Result:
    """Serves the page until Ctrl-C, and has the engine set up meanwhile where that is wanted; a models folder without
    models gets the miniature with a concept to try."""
    if not 1 <= options.port <= 65535:
        raise UserError(f"--port: it must be from 1 to 65535 (it is {options.port}).")
    found = folders(options, may_be_new=True)
    python = page_environment.ensure(terminal.show)
    demo.make_sample(found)
    if line := installation.on_own_page():
        terminal.say(line)
    terminal.end()
    command = [str(python), "-m", "dreambooth.ui.page.alone", "--port", str(options.port)]
    command += ["--data", str(found.models)]
    code = serve(command)
    if code not in (0, page_environment.PORT_IS_TAKEN, -signal.SIGTERM):  # a package of the page's may be damaged
        terminal.say("The page ended with an error; its environment (.page) is repaired, and the page started again.")
        page_environment.repair(terminal.show)
        terminal.end()
        code = serve(command)
    if code and code != -signal.SIGTERM:
        raise UserError(
            f"The page ended with code {code}; if the port {options.port} is taken, name another with --port."
        )
    return {}


def folders(options: argparse.Namespace, *, may_be_new: bool = False) -> Folders:
    """The models folder. Raises UserError where one is named that is not there, unless it `may_be_new`."""
    found = standalone.folders(options.data)
    is_there = found.models.is_dir()
    if options.data is not None and not is_there and (found.models.exists() or not may_be_new):
        raise UserError(f"--data: {paths.no_folder(found.models)}")
    relocation.follow(found)
    return found


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line gives: the file's, then the flags'.

    A relative folder is meant from where it is written: beside the settings file, or where the person stands.
    """
    return _given(options)[0]


def _given(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """The same, and whether the file lists the concepts, which then take the place of the model's."""
    given = _absolute(options.overrides, Path.cwd())
    if options.settings is None:
        return given, False
    file = paths.named(options.settings, "--settings")
    flat, lists_concepts = settings.read_file(file)
    return {**_absolute(flat, file.parent), **given}, lists_concepts


def _absolute(flat: dict[str, Any], base: Path) -> dict[str, Any]:
    named = {leaf.key for leaf in schema.leaves(Settings) if leaf.spec.path}
    return {
        key: paths.within(base, value)
        if schema.general(key) in named and isinstance(value, str) and value.strip()
        else value
        for key, value in flat.items()
    }


def merged_settings(options: argparse.Namespace) -> Settings:
    """The model's own settings with those of the command line over them."""
    own = project.open_project(folders(options), options.name).settings()
    return settings.parse(settings_over(own, options))


def settings_over(own: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Settings with those of the command line over them: the preset's, then the file's, then the flags'."""
    given, lists_concepts = _given(options)
    own = models.without_concepts(own) if lists_concepts else own
    return models.with_preset(options.preset, own, given) if options.preset is not None else {**own, **given}


def errand(options: argparse.Namespace, terminal: Terminal, kind: str, chosen: Settings, **fields: Any) -> Result:
    opened = project.open_project(folders(options), options.name)
    python = environment.ensure(terminal.show)
    job = launcher.new_errand(folders(options), opened, kind, chosen, **fields)
    return {"name": opened.name, **work(job, python, terminal)}


def work(job: Job, python: Path, terminal: Terminal) -> Result:
    """Starts a job in its turn and shows it to its end.

    Ctrl-C gives up waiting; later it asks to pause: the state is saved, and resume goes on from it.
    """
    offset, process = job.story().offset, None
    if job.needs_device:
        _take_turn(job, terminal)
    else:
        process = launcher.start(job, python)
    while True:
        try:
            launcher.follow(job, process, terminal.event, offset)
            break
        except KeyboardInterrupt:
            offset = job.story().offset
            if "pause" in job.requests():
                launcher.kill(job)
                raise
            job.request("pause")
            terminal.say("Pausing; press Ctrl-C again to end at once.")
    terminal.end()
    try:
        ending = launcher.result(job)
        summary = service_runs.summary(job) if job.is_run else {}
    finally:
        launcher.tidy(job)
    answer = {key: value for key, value in ending.items() if key not in ("event", "time")}
    return {**summary, **answer, **({"unfinished": True} if _is_unfinished(ending, summary) else {})}


def _is_unfinished(ending: Result, summary: Result) -> bool:
    """Whether less came of it than was asked for: it was paused, or ended without a result."""
    if ending["event"] == "done":
        return False
    return ending["event"] != "stopped" or bool(ending.get("discarded")) or not summary.get("outputs")


def _take_turn(job: Job, terminal: Terminal) -> None:
    models = str(job.folders().models)
    host = standalone.Standalone(models, alone_minutes=0)  # who closes a terminal may want it to go on
    try:
        queue.take_turn(job, host, terminal.say)
    except KeyboardInterrupt:
        launcher.forget(job)
        terminal.say("Taken out of the queue.")
        raise
    except UserError:
        launcher.forget(job)
        raise


def _ask(job: Job, what: job_folder.Request) -> Result:
    return {**service_runs.ask(job, what), "title": job.title}


def _meant(options: argparse.Namespace) -> Job:
    """The run that is named; by a model's name alone the job that is at work or waits, which may be an errand."""
    found = folders(options)
    if "/" not in options.run:
        opened = project.open_project(found, options.run)
        for job in [*reversed(job_list.runs(opened)), *reversed(job_list.errands(opened))]:
            if job.status() in ("running", "queued"):
                return job
    return job_list.find(found, options.run)


def serve(command: Sequence[str]) -> int:
    """Runs a server until it ends, and ends it with this process. Returns its exit code."""
    with subprocess.Popen(command, cwd=PROJECT) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            return process.wait()
        finally:
            process.terminate()
            signal.signal(signal.SIGTERM, before)
