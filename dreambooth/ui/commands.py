"""The commands of the command line, each a few lines over the service."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dreambooth.core import checkpoint, project, run, schema, settings
from dreambooth.core.errors import UserError
from dreambooth.core.project import Folders, Project
from dreambooth.core.run import Job
from dreambooth.core.settings import Settings
from dreambooth.host import standalone
from dreambooth.service import demo, environment, launcher
from dreambooth.ui import describe
from dreambooth.ui.terminal import Terminal

DONE, BROKEN, REFUSED = 0, 1, 2

Result = dict[str, Any]


def main(arguments: Sequence[str]) -> int:
    """Runs one command. Returns the exit code: 0 only if it did what it was asked, 2 for bad input."""
    parser = _parser()
    options, extra = parser.parse_known_args(arguments)
    terminal = Terminal()
    try:
        options.overrides = _overrides(extra, allowed=options.takes_settings)
        result = options.command(options, terminal)
        terminal.end()
        if options.json:
            print(json.dumps(result, ensure_ascii=False, indent=1))
        elif text := options.describe(result):
            print(text)
        return DONE
    except UserError as error:
        terminal.end()
        if options.json:
            print(json.dumps({"problems": error.problems}, ensure_ascii=False, indent=1))
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        terminal.say("Interrupted.")
        return 130


def setup(options: argparse.Namespace, terminal: Terminal) -> Result:
    environment.ensure(terminal.show, development=options.development)
    return environment.check()


def inspect(options: argparse.Namespace, terminal: Terminal) -> Result:
    path = Path(options.file).expanduser()
    if not path.exists():
        raise UserError(f"{path}: there is no such file.")
    return {"path": str(path), **checkpoint.describe(checkpoint.read_header(path)).as_json()}


def show_settings(options: argparse.Namespace, terminal: Terminal) -> Result:
    return schema.json_schema(Settings)


def create(options: argparse.Namespace, terminal: Terminal) -> Result:
    made = project.create(_folders(options), options.name, Path(options.source), _given(options))
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
        weights="" if options.base else str(_newest_output(opened) or ""),
        out=str(Path(options.out).expanduser().resolve() if options.out else opened.folder / "generated"),
    )


def export(options: argparse.Namespace, terminal: Terminal) -> Result:
    opened = project.open_project(_folders(options), options.name)
    weights = _newest_output(opened)
    if weights is None:
        raise UserError(f"The model {opened.name!r} has no finished run to export.")
    to = Path(options.to).expanduser().resolve()
    if to.exists():
        raise UserError(f"{to}: it exists already; name another file or folder.")
    return _errand(options, terminal, "export", settings.parse({}), weights=str(weights), to=str(to))


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
    return {
        key: str(base / Path(value).expanduser())
        if key.endswith("_dir") and isinstance(value, str) and value.strip()
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
    ending = launcher.result(job)
    summary = _summary(job) if job.folder.parent.name == "runs" else {"folder": str(job.folder)}
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


def _ask(options: argparse.Namespace, what: run.Request) -> Result:
    job = run.find(_folders(options), options.run)
    if not job.is_alive():
        raise UserError(f"The run {job.name} is not running: it is {job.status()}.")
    job.request(what)
    return {"run": job.name, "asked": what}


def _overrides(extra: list[str], *, allowed: bool) -> dict[str, Any]:
    """--a.b VALUE and --a.b=VALUE -> {a.b: VALUE}; a flag without a value means on."""
    found: dict[str, Any] = {}
    words = list(extra)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or not allowed:
            raise UserError(f"{word}: this command takes no such argument; see --help.")
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        found[key] = value
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dreambooth", description="Teach Stable Diffusion a subject from a few pictures."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(
        name: str,
        command: Callable[..., Result],
        help: str,
        show: Callable[[Result], str],
        *,
        takes_settings: bool = False,
    ) -> Any:
        sub = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        sub.add_argument("--data", metavar="DIR", help="the models folder (default: the WebUI's, or ./models)")
        sub.add_argument("--json", action="store_true", help="print the answer as JSON")
        if takes_settings:
            sub.add_argument(
                "--settings", metavar="FILE", help="a JSON file of settings; flags such as --lora.rank 8 win over it"
            )
        sub.set_defaults(command=command, describe=show, takes_settings=takes_settings)
        return sub

    add("setup", setup, "Make or repair the engine's environment.", describe.setup).add_argument(
        "--development", action="store_true", help="with what the tests need"
    )
    add("demo", run_demo, "The whole job on the bundled miniature model and pictures.", describe.demo).add_argument(
        "--out", metavar="DIR", help="a new folder for everything that the demo makes (default: demo)"
    )
    add("inspect", inspect, "Say what a checkpoint or LoRA is.", describe.about).add_argument("file", metavar="FILE")
    add("settings", show_settings, "List every setting.", lambda _: schema.markdown(Settings).rstrip())
    sub = add("create", create, "Make a model's folder from a checkpoint.", describe.created, takes_settings=True)
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("--source", required=True, metavar="FILE", help="the checkpoint to start from (.safetensors)")
    for name, command, meaning, show in (
        ("check", check, "Show the plan of a run: pictures, captions, steps, disk, time.", describe.plan),
        ("class-images", class_images, "Make the class pictures that a run will need.", describe.errand),
        (
            "train",
            train,
            "Train; every setting is a flag, such as --lora.rank 8 (see docs/settings.md).",
            describe.finished,
        ),
    ):
        add(name, command, meaning, show, takes_settings=True).add_argument("name", metavar="NAME")
    add("runs", runs, "List all runs.", describe.run_list)
    add("pause", pause, "Save a run's state and end its engine.", describe.asked).add_argument("run", metavar="RUN")
    add("resume", resume, "Go on with a run that was paused or lost.", describe.finished).add_argument(
        "run", metavar="RUN"
    )
    sub = add("stop", stop, "End a run and keep what it has learned.", describe.asked)
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("--discard", action="store_true", help="keep nothing")
    _add_generate(add)
    sub = add("export", export, "Write the newest result as a file or a Diffusers folder.", describe.exported)
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("--to", required=True, metavar="FILE|DIR")
    return parser


def _add_generate(add: Callable[..., Any]) -> None:
    sub = add("generate", generate, "Draw pictures with the newest result of a model.", describe.pictures)
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("--prompt", required=True)
    sub.add_argument("--negative", default="", metavar="PROMPT")
    sub.add_argument("--count", type=int, default=1)
    sub.add_argument("--seed", type=int, default=420420)
    sub.add_argument("--steps", type=int, default=20)
    sub.add_argument("--cfg", type=float, default=7.5)
    sub.add_argument("--width", type=int, default=0, help="pixels; 0 takes the model's own size")
    sub.add_argument("--height", type=int, default=0)
    sub.add_argument("--scheduler", default="dpm++", help="dpm++, ddim, euler, euler_a, lms or pndm")
    sub.add_argument("--batch", type=int, default=4)
    sub.add_argument("--lora-weight", type=float, default=1.0)
    sub.add_argument("--base", action="store_true", help="the untrained model, to compare")
    sub.add_argument("--out", metavar="DIR", help="where to (default: the model's folder)")
