"""The plan of a run, made without running it: every picture with its caption and crop, steps, disk, time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dreambooth.core import (
    captions,
    crops,
    disk_space,
    engine_capabilities,
    forecast,
    schedules,
    setting_remarks,
    validation,
)
from dreambooth.core.errors import Problem, UserError
from dreambooth.core.focal_point import FocalPoint
from dreambooth.core.job_folder import Job
from dreambooth.core.memory import footprint, planner
from dreambooth.core.models import anatomy, checkpoint
from dreambooth.core.models.model_file import Header
from dreambooth.core.run_length import Budget, budget
from dreambooth.core.settings import Settings
from dreambooth.core.step_rate import steps_per_second
from dreambooth.engine import compatibility, contact_sheet
from dreambooth.engine.checkpoints import embedding_start, lora_start
from dreambooth.engine.data import class_pictures, inpainting_masks, inspection, masks, pictures
from dreambooth.engine.data.cropping import Crop
from dreambooth.engine.data.pictures import Example, Gathered
from dreambooth.engine.work import Work

_KEPT = 0.6  # a crop that keeps less of a picture than this is worth a warning
_ENLARGED = 1.05  # and so is growing by more than this
_ROUNDED = 0.01  # of how many times tighter a crop is


def report(job: Job) -> dict[str, Any]:
    """What a run with these settings will do, in `problems` (and taken apart in `errors`) what would stop it, and in
    `warnings`, in the same form, what is to be known of pictures and (also in `remarks`, as sentences) of settings.

    Raises UserError where there is no picture to show.
    """
    work = Work.open(job)
    gathered = pictures.gather(work.settings.concepts, _looking(job))
    if not gathered.pictures:
        raise UserError(gathered.problems)
    header = None if work.project.problem else checkpoint.read_header(work.project.source)
    examples = pictures.examples(gathered, work.settings, work.size)
    held_out = pictures.held_out(gathered.pictures, work.settings)
    learned = [some for some, one in zip(examples, gathered.pictures) if one not in held_out]
    seen = pictures.seen_each_epoch(set(gathered.pictures) - held_out, work.settings.concepts)
    length = budget(work.settings, max(1, seen))
    kept, plans, unable = _drawn_before(work, learned)
    problems = [*gathered.problems, *_problems(work, header, gathered, length), *unable]
    remarked = _remarks(work, header, gathered, length)
    shown, warnings = _pictures(gathered, examples, work.settings)
    for row, picture in zip(shown, gathered.pictures):
        row["held_out"] = picture in held_out
    plan = {
        "pictures": shown,
        "mirrored": work.settings.intervals.validate_mirrored * min(len(learned), validation.MOST_MEASURED),
        "could_measure": _could_measure(gathered, work.settings),
        "strangers": [str(path) for path in _strangers(work)],
        "buckets": _buckets(examples),
        "class_pictures": [_class_pictures(planned) for planned in plans],
        "kept_prompts": kept,
        "size": work.size,
        "images_each_epoch": length.pictures,
        "epochs": round(length.images / length.pictures, 2),
        "images": length.images,
        "steps": length.steps,
        **_forecast(work, header, examples, length, to_draw=any(p.missing for p in plans)),
        "rates": schedules.curve(work.settings, length),
        "seconds": _seconds(work, length.steps + _steps_before(work.settings)),
        "steps_before": _steps_before(work.settings),
        "output_folder": str(work.project.results(work.folders, work.settings)),
        **UserError(problems).as_json(),
        "remarks": remarked,
        "warnings": [one.as_json() for one in [*map(Problem.of, remarked), *warnings]],
        "sheet": job.read().get("sheet", ""),
    }
    if plan["sheet"]:
        thumbnails = [seen.thumbnail for seen in gathered.looks]
        contact_sheet.write(Path(plan["sheet"]), work.project.name, plan, thumbnails)
    return plan


def _problems(work: Work, header: Header | None, gathered: Gathered, length: Budget) -> list[str]:
    """What would stop the run, of the settings, this environment, the model and the disk; of the pictures what concerns
    them together."""
    settings, about = work.settings, work.project.about
    readable = [picture.path for picture, seen in zip(gathered.pictures, gathered.looks) if not seen.error]
    of_all = [work.project.problem, masks.problem(settings, readable), pictures.imagic_problem(settings, len(readable))]
    return [
        *filter(None, of_all),
        *engine_capabilities.problems(settings),
        *compatibility.problems(settings, about),
        *_lora_blocks(work, header),
        *_start_file(work, header),
        *_room(work, header, length),
    ]


def _drawn_before(work: Work, learned: list[list[Example]]) -> tuple[list[str], list[class_pictures.Plan], list[str]]:
    """The prompts of class pictures that are kept as they are, those that are drawn, and why either cannot be."""
    kept, plans, problems = list[str](), list[class_pictures.Plan](), list[str]()
    try:
        kept = list(dict.fromkeys(one.picture.prompt for one in pictures.kept_examples(learned, work.settings)))
    except UserError as error:
        problems += error.problems
    if not work.project.problem:
        try:
            plans = class_pictures.plan(work.project, work.settings, learned, work.size)
        except UserError as error:
            problems += error.problems
    return kept, plans, problems


def _remarks(work: Work, header: Header | None, gathered: Gathered, length: Budget) -> list[str]:
    model = None if header is None else anatomy.of(header)
    texts, paths = [one.prompt for one in gathered.pictures], dict[int, list[Path]]()
    for one in gathered.pictures:
        paths.setdefault(one.concept, []).append(one.path)
    return setting_remarks.found(work.settings, texts, length.steps, model, paths)


def _start_file(work: Work, header: Header | None) -> list[str]:
    """Why the run cannot go on from the LoRA file or the embedding that its settings name."""
    if header is None:
        return []
    try:
        lora_start.check(work.settings, lora_start.weights_of(header), work.project.about["family"])
        embedding_start.check(work.settings, header)
    except UserError as error:
        return error.problems
    return []


def _lora_blocks(work: Work, header: Header | None) -> list[str]:
    """Why the model has nothing to train in the blocks that were chosen."""
    if header is None or not work.settings.lora.blocks.strip():
        return []
    problem = anatomy.blocks_problem(work.settings, header)
    return [problem] if problem else []


def _room(work: Work, header: Header | None, length: Budget) -> list[str]:
    """What a new run would write that no drive has room for."""
    if header is None:
        return []
    return disk_space.problems(work.folders, work.project, header, work.settings, length)


def _class_pictures(planned: class_pictures.Plan) -> dict[str, Any]:
    prompts = dict.fromkeys(one.prompt for one in class_pictures.prior_pictures([planned]))
    return {
        "folder": str(planned.folder),
        "wanted": planned.wanted,
        "there": len(planned.existing),
        "missing": planned.missing,
        "prompts": list(prompts),
    }


def _could_measure(gathered: Gathered, settings: Settings) -> str:
    """The setting by which the run could tell when it is best, with its value, where it cannot yet: a picture that can
    be spared, or else mirror images."""
    if settings.is_measured or settings.imagic.enabled:
        return ""
    counts = Counter(picture.concept for picture in gathered.pictures)
    if validation.could_tell([0], list(counts.values())):
        return f"concepts.{counts.most_common(1)[0][0]}.held_out 1"
    return "" if settings.pictures.hflip else "intervals.validate_mirrored on"


def _looking(job: Job) -> Callable[[int, int], None]:
    return lambda done, total: job.report("stage", name="looking at pictures", done=done, total=total)


def _pictures(
    gathered: Gathered, examples: list[list[Example]], settings: Settings
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Each picture, and what is to be known of any."""
    twins, rows, problems, seed = inspection.twins(gathered.looks), [], list[Problem](), settings.general.seed
    folders = [Path(concept.instance_data_dir).expanduser() for concept in settings.concepts]
    for number, (picture, seen, variants) in enumerate(zip(gathered.pictures, gathered.looks, examples)):
        folder = folders[picture.concept]
        texts = list(dict.fromkeys(captions.variants(picture.prompt, settings.captions, seed)))
        row: dict[str, Any] = {
            "path": str(picture.path),
            "folder": str(folder),
            "name": str(picture.path.relative_to(folder)),
            "concept": picture.concept,
            "prompt": texts[0],
            "texts": texts,
        }
        rows.append(row)
        if seen.error:
            row.update(verdict="error", error=seen.error, warnings=[])
            continue
        cut = variants[0].cut
        warnings = _warnings(seen, cut, picture.point)
        if number in twins:
            warnings[f"looks the same as {gathered.pictures[twins[number]].path.name}"] = "Take one of them out."
        problems += [Problem(f"{picture.path}: {what}.", str(picture.path), do) for what, do in warnings.items()]
        row.update(
            verdict="warning" if warnings else "ok",
            warnings=list(warnings),
            width=seen.width,
            height=seen.height,
            bucket=[cut.bucket.width, cut.bucket.height],
            crops=[[round(side, 1) for side in example.cut.box] for example in variants],
            chosen=picture.point.as_json() if picture.point else None,
        )
    return rows, problems


def _warnings(seen: inspection.Inspection, cut: Crop, point: FocalPoint | None) -> dict[str, str]:
    """What is to be known of a picture, with what could be done about it."""
    warnings = {}
    if seen.frames > 1:
        warnings[f"only the first of its {seen.frames} pictures is used"] = "Save the one that you mean by itself."
    if cut.enlarged > _ENLARGED:
        what = f"smaller than {cut.bucket}; it is enlarged {cut.enlarged:.1f} times"
        warnings[what] = "Take a larger one, or a smaller general.resolution."
    left, top, right, bottom = cut.box
    kept = (right - left) * (bottom - top) / (seen.width * seen.height)
    if kept < _KEPT and point is None:
        what = f"the crop keeps only {kept:.0%} of it"
        warnings[what] = "Choose the crop by hand, or let pictures.buckets and pictures.crop find a better one."
    most = crops.most_zoom((seen.width, seen.height), cut.bucket)
    if point and point.zoom > most + _ROUNDED:
        what = f"its crop is {most:.2f} times tighter, not {point.zoom:g} times, so that it need not be enlarged"
        warnings[what] = "Take a larger picture, a smaller general.resolution, or choose a wider crop."
    return warnings


def _strangers(work: Work) -> list[Path]:
    folders = [concept.instance_data_dir for concept in work.settings.concepts if concept.instance_data_dir.strip()]
    existing = [folder for name in dict.fromkeys(folders) if (folder := Path(name).expanduser()).is_dir()]
    return [path for folder in existing for path in inspection.strangers(folder)]


def _forecast(
    work: Work, header: Header | None, examples: list[list[Example]], length: Budget, *, to_draw: bool
) -> dict[str, Any]:
    """What the run takes, as far as the model's file tells; without it nothing is known."""
    used = [variants[0].cut.bucket for variants in examples if variants]
    if header is None or not used:
        return {"memory": None, "advice": "", "disk_bytes": 0, "save_bytes": 0, "saves": 0, "state_bytes": 0}
    settings = work.settings
    model, family, area = anatomy.of(header), work.project.about["family"], max(bucket.area for bucket in used)
    masked = inpainting_masks.of_yours(examples, settings) if work.project.about.get("inpainting") else 0
    kept = forecast.latent_bytes((one.cut.bucket for variants in examples for one in variants), masked)
    cached = footprint.cached_bytes(settings, model, _texts(examples, settings), kept)
    memory = footprint.needs(settings, model, family, area, to_draw=to_draw, cached=cached)
    card = engine_capabilities.card_bytes()
    plan = planner.plan(settings, model, family, area, card, to_draw=to_draw, cached=cached) if card else None
    return {
        "memory": {**asdict(memory), "total": memory.total},
        "advice": planner.advice(plan) if plan else "",
        "disk_bytes": forecast.disk_bytes(header, settings, length) + kept * settings.pictures.cache_on_disk,
        "save_bytes": forecast.save_bytes(header, settings),
        "saves": forecast.saves(settings, length),
        "state_bytes": forecast.state_bytes(header, settings),
    }


def _texts(examples: list[list[Example]], settings: Settings) -> int:
    """How many different texts your pictures are read with."""
    prompts, seed = {variants[0].picture.prompt for variants in examples if variants}, settings.general.seed
    return len({text for prompt in prompts for text in captions.variants(prompt, settings.captions, seed)})


def _buckets(examples: list[list[Example]]) -> list[dict[str, Any]]:
    """What falls into each bucket that is used, the fullest first."""
    counts = Counter(variants[0].cut.bucket for variants in examples if variants)
    return [{"width": b.width, "height": b.height, "pictures": count} for b, count in counts.most_common()]


def _steps_before(settings: Settings) -> int:
    """Steps that Imagic takes to fit its words, before those of the model."""
    return settings.imagic.embedding_steps if settings.imagic.enabled else 0


def _seconds(work: Work, steps: int) -> float | None:
    """The time of the training steps at the pace of this model's last run of the same kind; None without one."""
    pace = steps_per_second(work.project, work.job.settings())
    return round(steps / pace, 1) if pace else None
