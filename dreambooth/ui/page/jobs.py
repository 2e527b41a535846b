"""What the page's buttons do with jobs: runs, and the short ones beside them. All raise UserError for what a person can
mend.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from dreambooth.core import job_list, settings
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.core.job_folder import Job, Request
from dreambooth.core.project import Project
from dreambooth.host.base import Host
from dreambooth.service import (
    environment,
    exporting,
    launcher,
    preflight,
    queue,
    resume_run,
    runs,
    short_jobs,
    subject_words,
    txt2img,
)
from dreambooth.ui.page.short_job_view import newest_errand

Values = dict[str, Any]
Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
NAMED = "‹{}›"  # a field of a job in a sentence, for the page to put the label of its control there
_CALLED = {
    "check": "The check of the pictures (Concepts tab)",
    "class-images": "The making of class pictures (Concepts tab)",
    "generate": "The drawing of pictures (Generate tab)",
    "export": "The export (Generate tab)",
    "tokens": "The look at the words (Concepts tab)",
}
_NAMED = re.compile(NAMED.format("([^›]*)"))


def check(host: Host, opened: Project, chosen: settings.Settings) -> list[str]:
    """Looks at all pictures with these settings and waits for it. Returns what would stop a run."""
    python = engine()
    with replacing_last(opened, "check"):
        sheet = str(opened.folder / "check.html")
        job = launcher.new_errand(host.folders(), opened, "check", chosen, sheet=sheet)
        try:
            process = launcher.start(job, python)
        except OSError:
            launcher.forget(job)
            raise
    launcher.follow(job, process, lambda event: None)
    return list(launcher.result(job)["problems"])


def train(host: Host, opened: Project) -> Job:
    """Checks, then queues a run with exactly the settings that were checked: the page saves what is changed meanwhile.
    Raises UserError with all that stands in the way."""
    _check_none_at_work(opened)
    chosen = settings.parse(opened.settings())
    preflight.check_new(opened, chosen, host.folders())
    if problems := check(host, opened, chosen):
        raise UserError(problems)
    _check_none_at_work(opened)  # another window or a script may have begun one meanwhile
    job = launcher.new_run(host.folders(), opened, chosen)
    queue.submit_new(job)
    return job


def _check_none_at_work(opened: Project) -> None:
    for job in job_list.runs(opened):
        if (status := job.status()) in ("running", "queued"):
            raise UserError(f"The run {job.name} is {status}; pause or stop it first.")


def resume(host: Host, name: str) -> None:
    job = job_list.find(host.folders(), name)
    resume_run.prepare(host.folders(), job, {})
    queue.submit(job)


def resume_with_page(host: Host, opened: Project) -> None:
    """Goes on with the model's own settings, as far as a run that has begun can take them."""
    job = job_list.find(host.folders(), opened.name)
    resume_run.prepare(host.folders(), job, resume_run.takeable(resume_run.differences(job, opened)))
    queue.submit(job)


def ask(host: Host, name: str, what: Request) -> None:
    """Asks the current run of a model for something."""
    runs.ask(job_list.find(host.folders(), name), what)


def make_class_pictures(host: Host, opened: Project) -> None:
    _begin(host, opened, "class-images", settings.parse(opened.settings()))


def look_at_words(host: Host, opened: Project, row: int, wanted: str) -> None:
    """Has the model say what words are to it; without any, what the concept in `row` is called."""
    chosen = settings.parse(opened.settings())
    prompt = wanted.strip() or subject_words.prompt_of(chosen.concepts[row])
    if not prompt:
        raise UserError("Words: there are none, and no Instance Prompt either; write some, such as sks dog.")
    fields = short_jobs.words(prompt, short_jobs.CANDIDATES, label="{}")
    _begin(host, opened, "tokens", chosen, **fields)


def generate(host: Host, opened: Project, wanted: Values) -> None:
    """Draws pictures with a result of the model, or without one."""
    if not (wanted["prompt"] or "").strip():
        raise UserError("Sample Prompt: it is empty; say what to draw.")
    asked = {
        key: whole(value) if isinstance(short_jobs.DRAWING.get(key, ("",))[0], int) else value
        for key, value in wanted.items()
    }
    if txt2img.is_asked(asked, host):
        chosen, fields = txt2img.fields(opened, asked, host, label=NAMED)
        with replacing_last(opened, "generate"):
            txt2img.begin(host.folders(), opened, chosen, fields, host)
        return
    ask = short_jobs.sheet if "sheet" in asked else short_jobs.drawing
    chosen, fields = ask(opened, asked, label=NAMED)
    _begin(host, opened, "generate", chosen, **fields)


def whole(value: Any) -> Any:
    """A control's number, which gradio may give as 4.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def labelled(controls: Mapping[str, Any], do: Callable[[Asked], Answer]) -> Callable[[Asked], Answer]:
    """The handler, whose sentences call a job's field by the label of its control."""
    labels = {NAMED.format(name): str(control.label).partition(" (")[0] for name, control in controls.items()}

    def act(values: Asked) -> Answer:
        try:
            return do(values)
        except UserError as error:
            sentences = [_NAMED.sub(lambda found: labels.get(found[0]) or found[1], one) for one in error.problems]
            raise UserError(sentences) from None

    return act


def lora_weights(text: str) -> list[float]:
    """`0, 0.5, 1` -> [0.0, 0.5, 1.0]. Raises UserError for what are no numbers."""
    try:
        return [float(word) for word in text.replace(";", ",").split(",") if word.strip()]
    except ValueError:
        raise UserError(f"Lora Weights: {text[:40]!r} are no numbers with commas between them; 0.5, 1 are.") from None


def export(host: Host, opened: Project, wanted: Values) -> None:
    fields = exporting.fields(opened, wanted, label=NAMED)
    _begin(host, opened, "export", settings.parse({}), **fields)


def _begin(host: Host, opened: Project, kind: str, chosen: settings.Settings, **fields: Any) -> None:
    """Queues a new short job in the place of the last of its kind."""
    with replacing_last(opened, kind):
        queue.submit_new(launcher.new_errand(host.folders(), opened, kind, chosen, **fields))


@contextlib.contextmanager
def replacing_last(opened: Project, kind: str) -> Iterator[None]:
    """Removes the last short job of a kind once a new one is there, so that a refusal leaves what the last one has
    made. Raises UserError while that one is at work."""
    last = newest_errand(opened, kind)
    if last and launcher.is_under_way(last):
        raise UserError(f"{_CALLED[kind]} is still at work; wait for it, or press Stop beside its progress.")
    yield
    if last:
        atomic.remove_folder(last.folder)


def results(opened: Project) -> dict[str, Values]:
    """What can be drawn with, by what the page calls it: the files that there are of this model's runs, those of the
    newest first, then the states of runs that rest. Each as a job asks for it."""
    found: dict[str, Values] = {}
    for one in runs.outputs(opened):
        origin = f"run {one['run'].rpartition('/')[2]}" + ("" if one["step"] is None else f", step {one['step']:,}")
        origin += ", best" if one["best"] else ""
        found[f"{Path(one['path']).name} ({origin})"] = {"weights": one["path"]}
    for job in reversed(job_list.runs(opened)):
        number = int(job.folder.name)
        for step in reversed(job.states()) if _can_be_drawn_with(job) else ():
            found[f"state after step {step:,} (run {number})"] = {"run": number, "from_step": step}
    return found


def _can_be_drawn_with(job: Job) -> bool:
    """Whether the states of a run can be: not Imagic's, nor those of a run whose settings are damaged."""
    try:
        return resume_run.rests(job, job.status()) and not settings.parse(job.settings()).imagic.enabled
    except UserError:
        return False


def engine() -> Path:
    python = environment.python()
    if not environment.is_current():
        raise UserError("The engine is not set up yet; press Set Up beside the tabs.")
    return python
