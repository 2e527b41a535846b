"""Jobs as the command line, the page and the API see them: what they say, what they wrote, what may be asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth.core import checkpoint, paths, run, settings
from dreambooth.core.errors import Problem, UserError
from dreambooth.core.project import Project
from dreambooth.core.run import Job, Request
from dreambooth.core.settings import Settings, on_resume
from dreambooth.service import launcher

ENDED = ("done", "stopped")

Answer = dict[str, Any]

# What a request may say about pictures to draw: default, lowest and highest.
DRAWING: dict[str, tuple[Any, Any, Any]] = {
    "count": (1, 1, 1000),
    "steps": (20, 1, 500),
    "cfg": (7.5, 1, 30),
    "seed": (420420, 0, 2**31),
    "batch": (4, 1, 64),
    "lora_weight": (1.0, -4, 4),
    "width": (0, 64, 2048),
    "height": (0, 64, 2048),
}


def summary(job: Job) -> dict[str, Any]:
    """What the page and the command line show of a run, from its folder alone."""
    story, status = job.story(), job.status()
    last = story.step
    return {
        "run": job.name,
        "number": int(job.folder.name),
        "status": status,
        **_said(errors(job, status)),
        "step": last.get("step", 0),
        "steps": last.get("steps", 0),
        "loss": last.get("loss"),
        "seconds_left": last.get("seconds_left"),
        "outputs": [event["path"] for event in story.saved],
        "previews": str(job.folder / "previews.png") if (job.folder / "previews.png").exists() else None,
        "created": job.read().get("created"),
        "resumable": status in ("new", "paused", "failed", "lost"),
        "offset": story.offset,
        "folder": str(job.folder),
    }


def errors(job: Job, status: str) -> list[Problem]:
    """Why a run failed or was lost; empty where nothing is wrong."""
    if status not in ("failed", "lost"):
        return []
    try:
        launcher.result(job)
    except UserError as error:
        return error.errors
    return []


def _said(found: list[Problem]) -> Answer:
    """Problems as answers hold them; none of them is no error."""
    return UserError(found).as_json()


def outcome(job: Job) -> dict[str, Any]:
    """An errand's status, how far it is, and its answer once it is done."""
    story, status = job.story(), job.status()
    ending = story.ending if story.status == "done" else None
    return {
        "errand": job.name,
        "number": int(job.folder.name),
        "kind": job.read()["kind"],
        "status": status,
        **_said(errors(job, status)),
        "stage": story.stage,
        "result": {key: value for key, value in (ending or {}).items() if key not in ("event", "time")},
        "offset": story.offset,
    }


def check_resumable(job: Job) -> None:
    """Raises UserError for a run that has ended, runs, or waits to run."""
    status = job.status()
    if status in (*ENDED, "running", "queued"):
        raise UserError(f"The run {job.name} cannot be resumed: it is {status}.")


def change_settings(job: Job, given: dict[str, Any]) -> dict[str, Any]:
    """Has a run go on with other settings than it began with. Returns those that differ, as dotted keys.

    Raises UserError, and changes nothing, for a run that cannot go on and for settings that must stay as they are.
    """
    check_resumable(job)
    changed = on_resume.changes(job.settings(), given)
    if changed and any(event["event"] == "result" for event in job.events()[0]):
        raise UserError(f"The run {job.name} has written its result already; resume it as it is.")
    if changed:
        job.change(changed)
    return changed


def ask(job: Job, what: Request) -> dict[str, Any]:
    """Asks a running engine for something. A run that waits to start is taken out of the queue by pause, stop and
    discard. Raises UserError if the run is neither."""
    if job.status() == "queued" and what in ("pause", "stop", "discard"):
        job.clear_request("start")
        return {"run": job.name, "asked": what}
    if not job.is_alive():
        raise UserError(f"The run {job.name} is not running: it is {job.status()}.")
    job.request(what)
    return {"run": job.name, "asked": what}


def weights(opened: Project, file: str, *, base: bool) -> Path | None:
    """The file that is meant: the one that was named, or the newest result; None for the base model.

    Raises UserError for a file that is neither checkpoint nor LoRA, or when both are asked for.
    """
    if file and base:
        raise UserError("weights, base: these exclude each other; name one.")
    if file:
        path = paths.named(file, "weights")
        about = checkpoint.describe(checkpoint.read_header(path))
        if about.kind not in ("checkpoint", "lora"):
            raise UserError(f"{path}: this is neither a checkpoint nor a LoRA.")
        return path
    return None if base else _newest_output(opened)


def _newest_output(opened: Project) -> Path | None:
    """The last file that a run of this model wrote and that is still there."""
    for job in reversed(run.runs(opened)):
        for path in reversed(_outputs(job)):
            if Path(path).exists():
                return Path(path)
    return None


def _outputs(job: Job) -> list[str]:
    return [event["path"] for event in job.story().saved]


def settings_of(opened: Project, file: Path | None) -> Settings:
    """The settings of the run that wrote the weights, so that prompts are read as it read them; without weights those
    of the newest run, to compare with; else the model's own."""
    for job in reversed(run.runs(opened)):
        if file is None or str(file) in _outputs(job):
            return settings.parse(job.settings())
    return settings.parse(opened.settings())


def drawing(opened: Project, wanted: Mapping[str, Any], *, label: str = "{}") -> tuple[Settings, dict[str, Any]]:
    """The settings and the job's fields for pictures to be drawn. `label` shows a person a key's name, as --{} does.

    Raises UserError with every value that will not do.
    """
    values = {key: wanted.get(key, default) for key, (default, _, _) in DRAWING.items()}
    problems = [
        f"{label.format(key.replace('_', '-'))}: {problem}"
        for key, value in values.items()
        if (problem := _drawing_problem(key, value))
    ]
    texts = {
        key: wanted.get(key, default) for key, default in (("prompt", ""), ("negative", ""), ("scheduler", "dpm++"))
    }
    texts["prompt"] = "" if texts["prompt"] is None else texts["prompt"]
    problems += [f"{label.format(key)}: it is not text." for key, value in texts.items() if not isinstance(value, str)]
    if problem := _eta_problem(wanted.get("eta")):
        problems.append(f"{label.format('eta')}: {problem}")
    if problems:
        raise UserError(problems)
    file = weights(opened, str(wanted.get("weights") or ""), base=bool(wanted.get("base")))
    edits = file is not None and opened.embedding(file).exists()
    if wanted.get("prompt", "") is None and not edits:
        raise UserError(f"{label.format('prompt')}: it is missing; say what to draw.")
    if wanted.get("eta") is not None and not edits:
        raise UserError(f"{label.format('eta')}: only a result of Imagic (imagic.enabled) is drawn with it.")
    out = wanted.get("out")
    return settings_of(opened, file), {
        "prompt": texts["prompt"],
        "negative_prompt": texts["negative"],
        "scheduler": texts["scheduler"],
        "guidance_scale": values.pop("cfg"),
        **values,
        "eta": wanted.get("eta"),
        "weights": str(file or ""),
        "out": str(paths.named(str(out), label.format("out")) if out else opened.folder / "generated"),
    }


def _eta_problem(eta: Any) -> str:
    if eta is None or (isinstance(eta, (int, float)) and not isinstance(eta, bool) and 0 <= eta <= 2):
        return ""
    return f"it must be a number from 0, the picture, to 2, with 1 for the prompt (it is {eta!r})."


def _drawing_problem(key: str, value: Any) -> str:
    default, low, high = DRAWING[key]
    whole = isinstance(default, int)
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        return f"it must be a {'whole ' if whole else ''}number (it is {value!r})."
    if key in ("width", "height"):
        if value and (value % 8 or not low <= value <= high):
            return f"it must be a multiple of 8 from {low} to {high}, or 0 (it is {value})."
    elif not low <= value <= high:
        return f"it must be from {low} to {high} (it is {value})."
    return ""


def outputs(opened: Project) -> list[dict[str, Any]]:
    """The files that a model's runs have written and that are still there, newest first."""
    found = []
    for job in reversed(run.runs(opened)):
        for event in reversed(job.story().saved):
            if (path := Path(event["path"])).exists():
                found.append({"run": job.name, "path": str(path), "kind": event["kind"], "images": event["images"],
                              "bytes": event["bytes"]})  # fmt: skip
    return found


def errand(opened: Project, kind: str, wanted: Mapping[str, Any], chosen: Settings) -> tuple[Settings, dict[str, Any]]:
    """The settings and fields of a short job. `chosen` are the model's settings with what the request changes.

    Raises UserError for a kind that does not exist, or values that will not do.
    """
    if kind == "check":
        return chosen, {"sheet": ""}
    if kind == "class-images":
        return chosen, {}
    if kind == "generate":
        return drawing(opened, wanted)
    if kind == "export":
        return settings.parse({}), exporting(opened, wanted)
    if kind == "tokens":
        return chosen, words(wanted.get("prompt"), wanted.get("candidates", 24), label="{}")
    raise UserError(f"kind: {kind!r} is none of check, class-images, generate, export, tokens.")


def words(prompt: Any, candidates: Any, *, label: str) -> dict[str, Any]:
    """The fields of a job that says what words are to a model. Raises UserError for no words, or a bad number."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError("PROMPT: it is empty; give the words that you mean to use, such as 'sks dog'.")
    if isinstance(candidates, bool) or not isinstance(candidates, int) or not 0 <= candidates <= 400:
        raise UserError(f"{label.format('candidates')}: it must be from 0 to 400 (it is {candidates}).")
    return {"prompt": prompt, "candidates": candidates}


def exporting(opened: Project, wanted: Mapping[str, Any], *, label: str = "{}") -> dict[str, Any]:
    """The job's fields for an export. Raises UserError for what cannot be exported, or to where."""
    base = bool(wanted.get("base"))
    file = weights(opened, str(wanted.get("weights") or ""), base=base)
    if file is None and not base:
        raise UserError(
            f"The model {opened.name!r} has no finished run to export ({label.format('base')} exports the model that "
            "it was made from)."
        )
    merge = wanted.get("merge")
    if merge is not None and (not isinstance(merge, (int, float)) or not -4 <= merge <= 4):
        raise UserError(f"{label.format('merge')}: it must be from -4 to 4 (it is {merge}).")
    target = wanted.get("to")
    if not isinstance(target, str) or not target.strip():
        raise UserError(f"{label.format('to')}: it is empty; name a file or folder to write.")
    to = paths.named(target, label.format("to"))
    if to.exists():
        raise UserError(f"{to}: it exists already; name another file or folder.")
    return {"weights": str(file or ""), "to": str(to), "merge": merge, "half": bool(wanted.get("half"))}
