"""What each command does: a few lines over the service, and an answer that can be shown or printed as JSON."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dreambooth.core import checkpoint, project, run, schema, settings
from dreambooth.core.errors import UserError
from dreambooth.core.origin import Origin
from dreambooth.core.project import Folders, Project
from dreambooth.core.run import Job
from dreambooth.core.settings import Settings
from dreambooth.host import standalone
from dreambooth.service import demo, environment, launcher
from dreambooth.ui.terminal import Terminal

Result = dict[str, Any]


def setup(options: argparse.Namespace, terminal: Terminal) -> Result:
    environment.ensure(terminal.show, development=options.development)
    return environment.check()


def inspect(options: argparse.Namespace, terminal: Terminal) -> Result:
    path = Path(options.file).expanduser().resolve()
    return {"path": str(path), **checkpoint.describe(checkpoint.read_header(path)).as_json()}


def show_settings(options: argparse.Namespace, terminal: Terminal) -> Result:
    return schema.json_schema(Settings)


def create(options: argparse.Namespace, terminal: Terminal) -> Result:
    origin = {leaf.key: getattr(options, leaf.key) for leaf in schema.leaves(Origin)}
    made = project.create(_folders(options), options.name, Path(options.source), _given(options), origin)
    return {"name": made.name, "folder": str(made.folder), "source": str(made.source), "about": made.about}


def check(options: argparse.Namespace, terminal: Terminal) -> Result:
    return _errand(options, terminal, "check", _merged(options))


def class_images(options: argparse.Namespace, terminal: Terminal) -> Result:
    return _errand(options, terminal, "class-images", _merged(options))


def train(options: argparse.Namespace, terminal: Terminal) -> Result:
    opened, merged = project.open_project(_folders(options), options.name), _merged(options)
    python = environment.ensure(terminal.show)
    job = launcher.new_run(_folders(options), opened, merged)
    terminal.say(f"Run {job.name}: {job.folder}")
    return _work(job, python, terminal)


def resume(options: argparse.Namespace, terminal: Terminal) -> Result:
    job = run.find(_folders(options), options.run)
    status = job.status()
    if status in ("done", "stopped", "running"):
        raise UserError(f"The run {job.name} cannot be resumed: it is {status}.")
    return _work(job, environment.ensure(terminal.show), terminal)


def runs(options: argparse.Namespace, terminal: Terminal) -> Result:
    return {"runs": [_summary(job) for job in run.all_runs(_folders(options))]}


def pause(options: argparse.Namespace, terminal: Terminal) -> Result:
    return _ask(options, "pause")


def stop(options: argparse.Namespace, terminal: Terminal) -> Result:
    return _ask(options, "discard" if options.discard else "stop")


def generate(options: argparse.Namespace, terminal: Terminal) -> Result:
    opened = project.open_project(_folders(options), options.name)
    problems = [
        f"--{name}: it must be from {low} to {high} (it is {value})."
        for name, value, low, high in (
            ("count", options.count, 1, 1000),
            ("steps", options.steps, 1, 500),
            ("cfg", options.cfg, 1, 30),
            ("seed", options.seed, 0, 2**31),
            ("batch", options.batch, 1, 64),
            ("lora-weight", options.lora_weight, -4, 4),
        )
        if not low <= value <= high
    ] + [
        f"--{name}: it must be a multiple of 8 from 64 to 2048, or 0 (it is {value})."
        for name, value in (("width", options.width), ("height", options.height))
        if value and (value % 8 or not 64 <= value <= 2048)
    ]
    if problems:
        raise UserError(problems)
    return _errand(
        options,
        terminal,
        "generate",
        settings.parse({}),
        prompt=options.prompt,
        negative_prompt=options.negative,
        count=options.count,
        steps=options.steps,
        seed=options.seed,
        guidance_scale=options.cfg,
        width=options.width,
        height=options.height,
        scheduler=options.scheduler,
        batch=options.batch,
        lora_weight=options.lora_weight,
        weights=str(_weights(options, opened) or ""),
        out=str(Path(options.out).expanduser().resolve() if options.out else opened.folder / "generated"),
    )


def export(options: argparse.Namespace, terminal: Terminal) -> Result:
    opened = project.open_project(_folders(options), options.name)
    weights = _weights(options, opened)
    if weights is None and not options.base:
        raise UserError(
            f"The model {opened.name!r} has no finished run to export (--base exports the model that it was made from)."
        )
    if options.merge is not None and not -4 <= options.merge <= 4:
        raise UserError(f"--merge: it must be from -4 to 4 (it is {options.merge}).")
    to = Path(options.to).expanduser().resolve()
    if to.exists():
        raise UserError(f"{to}: it exists already; name another file or folder.")
    fields = {"weights": str(weights or ""), "to": str(to), "merge": options.merge, "half": options.half}
    return _errand(options, terminal, "export", settings.parse({}), **fields)


def run_demo(options: argparse.Namespace, terminal: Terminal) -> Result:
    out = demo.free_folder(options.out)
    python = environment.ensure(terminal.show)
    return demo.run(out, python, terminal.say, terminal.event)


def _folders(options: argparse.Namespace) -> Folders:
    return standalone.folders(options.data)


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line gives: the file's, then the flags'.

    A relative folder is meant from where it is written: beside the settings file, or where the person stands.
    """
    given = _absolute(options.overrides, Path.cwd())
    if options.settings:
        file = Path(options.settings).expanduser().resolve()
        given = {**_absolute(settings.read_file(file), file.parent), **given}
    return given


def _absolute(flat: dict[str, Any], base: Path) -> dict[str, Any]:
    paths = {leaf.key for leaf in schema.leaves(Settings) if leaf.spec.path}
    return {
        key: str(base / Path(value).expanduser())
        if schema.general(key) in paths and isinstance(value, str) and value.strip()
        else value
        for key, value in flat.items()
    }


def _merged(options: argparse.Namespace) -> Settings:
    """The model's own settings with those of the command line over them."""
    own = project.open_project(_folders(options), options.name).settings()
    return settings.parse({**own, **_given(options)})


def _errand(options: argparse.Namespace, terminal: Terminal, kind: str, chosen: Settings, **fields: Any) -> Result:
    opened = project.open_project(_folders(options), options.name)
    python = environment.ensure(terminal.show)
    job = launcher.new_errand(_folders(options), opened, kind, chosen, **fields)
    return {"name": opened.name, **_work(job, python, terminal)}


def _work(job: Job, python: Path, terminal: Terminal) -> Result:
    """Starts a job and shows it to its end. Ctrl-C asks it to pause; the state is saved, and resume goes on from it."""
    offset = job.events()[1]
    process = launcher.start(job, python)
    while True:
        try:
            launcher.follow(job, process, terminal.event, offset)
            break
        except KeyboardInterrupt:
            offset = job.events()[1]
            if "pause" in job.requests():
                process.kill()
                raise
            job.request("pause")
            terminal.say("Pausing; press Ctrl-C again to end at once.")
    terminal.end()
    try:
        ending = launcher.result(job)
        summary = _summary(job) if job.folder.parent.name == "runs" else {}
    finally:
        launcher.tidy(job)
    return {**summary, **{key: value for key, value in ending.items() if key not in ("event", "time")}}


def _summary(job: Job) -> Result:
    events, _ = job.events()
    last = job.progress()
    return {
        "run": job.name,
        "status": job.status(),
        "step": last.get("step", 0),
        "steps": last.get("steps", 0),
        "loss": last.get("loss"),
        "outputs": [event["path"] for event in events if event["event"] == "saved"],
        "previews": next((event["sheet"] for event in reversed(events) if event["event"] == "preview"), None),
        "folder": str(job.folder),
    }


def _newest_output(opened: Project) -> Path | None:
    """The last file that a run of this model wrote and that is still there."""
    for job in reversed(run.runs(opened)):
        for path in reversed(_summary(job)["outputs"]):
            if Path(path).exists():
                return Path(path)
    return None


def _weights(options: argparse.Namespace, opened: Project) -> Path | None:
    """The file that a command is about: the one that was named, or the newest result; None for the base model."""
    if options.weights and options.base:
        raise UserError("--weights, --base: these exclude each other; name one.")
    if options.weights:
        path = Path(options.weights).expanduser().resolve()
        about = checkpoint.describe(checkpoint.read_header(path))
        if about.kind not in ("checkpoint", "lora"):
            raise UserError(f"{path}: this is neither a checkpoint nor a LoRA.")
        return path
    return None if options.base else _newest_output(opened)


def _ask(options: argparse.Namespace, what: run.Request) -> Result:
    job = run.find(_folders(options), options.run)
    if not job.is_alive():
        raise UserError(f"The run {job.name} is not running: it is {job.status()}.")
    job.request(what)
    return {"run": job.name, "asked": what}
