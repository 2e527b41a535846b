"""The commands about what a run has made: pictures with it, writing it out, and telling of a run that went wrong."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dreambooth.core import job_list, project, settings
from dreambooth.core.errors import UserError
from dreambooth.core.files import paths
from dreambooth.core.project import Project
from dreambooth.service import deleting, exporting, short_jobs
from dreambooth.service import report as report_file
from dreambooth.service import runs as service_runs
from dreambooth.ui import commands
from dreambooth.ui.commands import Result
from dreambooth.ui.terminal import Terminal


def report(options: argparse.Namespace, terminal: Terminal) -> Result:
    job = job_list.find(commands.folders(options), options.run)
    to = paths.named(report_file.name(job) if options.to is None else options.to, "--to")
    return {"run": job.name, "path": str(report_file.write(job, to))}


def generate(options: argparse.Namespace, terminal: Terminal) -> Result:
    opened = project.open_project(commands.folders(options), options.name)
    chosen, fields = short_jobs.drawing(opened, vars(options), label="--{}")
    if not (fields["weights"] or options.base or options.from_step):
        terminal.say(f"{opened.name} has no result yet; this draws with the model before training.")
    return commands.errand(options, terminal, "generate", chosen, **fields)


def sheet(options: argparse.Namespace, terminal: Terminal) -> Result:
    opened = project.open_project(commands.folders(options), options.name)
    if options.weights and options.from_step:
        raise UserError("--weights, --from-step: these exclude each other; give one.")
    if not options.from_step:
        exporting.check_no_run(vars(options), "--{}")
    states: list[Any] = [{"run": options.run, "from_step": step} for step in options.from_step or []]
    files = [str(paths.named(file, "--weights")) for file in options.weights or []]
    results = [] if states or files else [one["path"] for one in reversed(service_runs.outputs(opened))]
    lines = [*([""] if options.base else []), *states, *files, *results]
    if not lines:
        raise UserError(f"--weights: {opened.name} has no result yet; name files, or add --base for the model before.")
    asked = {**vars(options), "sheet": {"weights": lines, "lora_weights": options.lora_weights}}
    chosen, fields = short_jobs.sheet(opened, asked, label="--{}", within="")
    return commands.errand(options, terminal, "generate", chosen, **fields)


def delete(options: argparse.Namespace, terminal: Terminal) -> Result:
    found = commands.folders(options)
    opened = project.open_project(found, options.name)
    return deleting.delete(found, opened, result_named(opened, options.file))


def result_named(opened: Project, named: str) -> str:
    """The path of the result that is meant by its name or by any path that leads to it; a path as it is for another."""
    path = paths.named(named, "FILE")
    there = dict.fromkeys(one["path"] for one in service_runs.outputs(opened))
    meant = [one for one in there if named == Path(one).name] or [one for one in there if Path(one).resolve() == path]
    if len(meant) > 1:
        raise UserError(f"FILE: {named} can be {' or '.join(meant)}; give the whole path.")
    return meant[0] if meant else str(path)


def export(options: argparse.Namespace, terminal: Terminal) -> Result:
    opened = project.open_project(commands.folders(options), options.name)
    if options.to is None and options.from_step is None:
        raise UserError("--to: it is missing; name a file or folder to write.")
    to = paths.named(options.to, "--to") if options.to else ""  # from where the person is
    onto = str(paths.named(options.onto, "--onto")) if options.onto else ""
    fields = exporting.fields(opened, {**vars(options), "to": str(to), "onto": onto}, label="--{}")
    return commands.errand(options, terminal, "export", settings.parse({}), **fields)
