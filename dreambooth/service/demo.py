"""The demo: the whole job on the bundled miniature model and five pictures of a subject that it has never seen."""

from __future__ import annotations

import html
import shutil
import string
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreambooth.core import project, settings
from dreambooth.core.errors import UserError
from dreambooth.core.files import paths
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders, Project
from dreambooth.service import launcher

FIGURES = {
    "likeness": "like the subject",
    "likeness_on_backgrounds": "on other backgrounds",
    "prompt_following": "follows the prompt",
    "class_variety": "class variety",
    "class_drift": "class drift",
}
_TEMPLATE = Path(__file__).with_name("demo_report.html")

Say = Callable[[str], None]

# The pictures show large stars, and the words say so: most of what the miniature draws for "a star" are specks, and
# with those for class pictures it forgets what a star is.
WORDS = {"subject": "a photo of a large sks star", "of_class": "a photo of a large star"}

# The miniature is small, so it learns at rates far above a full-size model's. Its text encoder learns, too: without,
# the subject is hardly seen on backgrounds that its pictures do not have.
_SHARED = {
    "concepts.0.instance_prompt": "a photo of a large [filewords]",
    "concepts.0.class_prompt": WORDS["of_class"],
    "concepts.0.num_class_images_per": 12,
    "concepts.0.class_guidance_scale": 5.0,
    "batching.train_batch_size": 2,
    "batching.class_batch_size": 8,
    "intervals.num_train_epochs": 200,
    "intervals.save_preview_every": 50,
    "intervals.save_state_every": 50,
    "learning.scheduler": "cosine",
    "tuning.prior_loss_weight": 1.0,
    "tuning.text_encoder_ratio": 1.0,
    "previews.guidance_scale": 5.0,
    "previews.count": 2,
    "previews.prompts": "; ".join(
        [WORDS["subject"], f"{WORDS['subject']} on a purple background", WORDS["of_class"], "a photo of a heart"]
    ),
}
METHODS: dict[str, dict[str, Any]] = {
    "full fine-tuning": {
        **_SHARED,
        "general.method": "full",
        "learning.learning_rate": 4e-4,
        "learning.text_encoder_learning_rate": 4e-4,
    },
    "LoRA": {
        **_SHARED,
        "general.method": "lora",
        "learning.lora_learning_rate": 3e-3,
        "learning.lora_text_encoder_learning_rate": 1e-3,
        "lora.rank": 16,
        "lora.alpha": 16.0,
    },
}


def make_sample(folders: Folders) -> None:
    """The miniature with the demo's concept, ready to train, in a models folder that has no model yet."""
    if not project.names(folders):
        flat = {**METHODS["LoRA"], "concepts.0.instance_data_dir": str(SUBJECT_PICTURES)}
        project.create(folders, "sample-star", MINIATURE, flat)


def free_folder(wanted: str | None) -> Path:
    """The folder that the demo may fill: new or empty. Raises UserError if it is neither."""
    out, number = paths.named("demo" if wanted is None else wanted, "--out"), 2
    while wanted is None and out.exists():
        out, number = out.with_name(f"demo-{number}"), number + 1
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: the demo fills a new folder; name one that does not exist yet.")
    if reason := paths.unwritable(out):
        raise UserError(f"--out: nothing can be written in {out} ({reason}); name another folder.")
    return out


def run(out: Path, python: Path, say: Say, on_event: launcher.OnEvent) -> dict[str, Any]:
    """Teaches the subject twice, measures both results and writes the report. Returns the paths and figures."""
    started = time.monotonic()
    folders = Folders(out / "models")
    pictures = out / "pictures"
    shutil.copytree(SUBJECT_PICTURES, pictures)
    opened = project.create(folders, "demo", MINIATURE, {"concepts.0.instance_data_dir": str(pictures)})
    jobs: dict[str, Job] = {}
    seconds: dict[str, float] = {}
    for name, chosen in METHODS.items():
        say(f"Teaching the miniature a new star from five pictures: {name}")
        since = time.monotonic()
        jobs[name] = launcher.new_run(folders, opened, settings.parse({**opened.settings(), **chosen}))
        _work(jobs[name], python, on_event)
        _output(jobs[name])
        seconds[name] = time.monotonic() - since
    results = {name: _output(job) for name, job in jobs.items()}
    measured = _measure(folders, opened, results, jobs, out, python, on_event)
    report = out / "report.html"
    report.write_text(_report(measured["figures"], seconds, jobs, pictures), encoding="utf-8")
    for name, job in jobs.items():
        shutil.copyfile(job.folder / "previews.png", out / f"previews-{_slug(name)}.png")
    return {
        "checkpoint": results["full fine-tuning"],
        "lora": results["LoRA"],
        "contact_sheet": measured["contact_sheet"],
        "report": str(report),
        "figures": measured["figures"],
        "training_seconds": {name: round(value, 1) for name, value in seconds.items()},
        "seconds": round(time.monotonic() - started, 1),
    }


def _work(job: Job, python: Path, on_event: launcher.OnEvent) -> dict[str, Any]:
    process = launcher.start(job, python)
    try:
        launcher.follow(job, process, on_event)
        return launcher.result(job)
    finally:
        if process.poll() is None:
            process.kill()
        launcher.tidy(job)


def _measure(
    folders: Folders,
    opened: Project,
    results: dict[str, str],
    jobs: dict[str, Job],
    out: Path,
    python: Path,
    on_event: launcher.OnEvent,
) -> dict[str, Any]:
    job = launcher.new_errand(
        folders, opened, "measure", settings.parse({**opened.settings(), **_SHARED}),
        variants={"before": "", **results}, out=str(out),
        words=WORDS, previews={name: str(job.previews) for name, job in jobs.items()},
    )  # fmt: skip
    return _work(job, python, on_event)


def _output(job: Job) -> str:
    """What a run has written. Raises UserError where it was paused or ended before it had written anything."""
    story = job.story()
    if story.status != "done":
        reason = "; ".join(one.sentence for one in story.warnings[-1:]) or f"the run is {story.status}"
        raise UserError(f"{job.folder}: the demo needs its results, and there is none ({reason}); start it anew.")
    return str(story.saved[-1]["path"])


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-")


def _report(
    figures: dict[str, dict[str, float]], seconds: dict[str, float], jobs: dict[str, Job], pictures: Path
) -> str:
    rows = []
    for name, values in figures.items():
        cells = [html.escape(name), *(f"{values[key]:.2f}" for key in FIGURES)]
        cells.append(f"{seconds[name]:.0f}" if name in seconds else "")
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    previews = [
        f'<h2>During {html.escape(name)}</h2>\n<img src="previews-{_slug(name)}.png" alt="Previews">' for name in jobs
    ]
    subject = [f'<img src="pictures/{path.name}" alt="">' for path in sorted(pictures.glob("*.png"))]
    template = string.Template(_TEMPLATE.read_text(encoding="utf-8"))
    head = "".join(f"<th>{label}</th>" for label in FIGURES.values())
    return template.substitute(
        head=head, rows="\n  ".join(rows), pictures="\n  ".join(subject), previews="\n".join(previews)
    )
