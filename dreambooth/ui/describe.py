"""Answers of the commands in words, for people."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dreambooth.core.abilities import FAULTS
from dreambooth.core.models.checkpoint import FAMILIES
from dreambooth.core.quantities import duration, memory, size
from dreambooth.core.values import plain
from dreambooth.service.demo import FIGURES
from dreambooth.ui import describe_card
from dreambooth.ui.terminal import table

Result = dict[str, Any]

_KNOWN_BY = {
    "chosen": "as you said",
    "metadata": "the file says so",
    "markers": "the file says so",
    "scheduler": "the folder says so",
    "yaml": "the .yaml beside it says so",
    "file name": "judged by its name; --prediction-type overrules it",
    "the family": "as all of this kind",
    "assumed": "assumed; --prediction-type overrules it",
}


def setup(result: Result) -> str:
    rows = [["python", f"{result['python']} ({result['python_version']})"], ["device", result["device_name"]]]
    rows += [[name, version] for name, version in result["packages"].items()]
    for key, some in result.get(FAULTS, {}).items():
        rows += [[f"{key} {choice}", f"does not work here: {reason}"] for choice, reason in some.items()]
    return table(rows)


def about(result: Result) -> str:
    parts = [name for name in ("unet", "vae", "text_encoder", "ema") if result[f"has_{name}"]]
    layout = "Diffusers folder" if result["layout"] == "diffusers" else result["kind"]
    rows = [
        ["file", result["path"]],
        ["is", f"{layout}, {_family(result)}, {result['precision']}, {size(result['bytes'])}"],
        ["holds", ", ".join([f"{result['parameters']:,} values in {result['tensors']:,} tensors", *parts])],
    ]
    if result["kind"] == "checkpoint":
        terminal = ", zero terminal SNR" if result["zero_terminal_snr"] else ""
        told = f"{result['prediction_type']} prediction{terminal} ({_KNOWN_BY[result['known_by']]})"
        rows.append(["made for", f"{result['resolution']} pixels, {told}"])
    if result["stray"]:
        rows.append(["also holds", f"{', '.join(result['stray'])} (kept, not used)"])
    if "dreambooth.settings" in result["metadata"]:
        rows.append(
            ["trained by", f"this extension, from {result['metadata'].get('dreambooth.base', 'an unknown file')}"]
        )
    rows.append(["training", result["reason"] or "can be trained from"])
    return table(rows)


def presets(result: Result) -> str:
    lines = []
    for one in result["presets"]:
        rows = [[f"    {s['setting']}", str(s["value"]), s["reason"]] for s in one["settings"]]
        lines.append(f"{one['name']}: {one['label']}. {one['meaning']}\n{table(rows)}\n")
    return "\n".join([*lines, "Take one with: train NAME --preset person. Flags win over it."])


def performance(result: Result) -> str:
    if "plans" not in result:
        return "\n".join([result["why"], *result["flags"]])
    rows = [["model", "method", "card", "needs", "settings"]]
    for one in result["plans"]:
        changes = ", ".join(one["flags"]) or "as they are"
        needs = f"{memory(one['needs']['total'])}{'' if one['fits'] else ', too much'}"
        rows.append([FAMILIES[one["family"]], one["method"], f"{one['card_bytes'] / 2**30:g} GB", needs, changes])
    return table(rows)


def _family(about: Result) -> str:
    return FAMILIES.get(about["family"], "unknown kind")


def created(result: Result) -> str:
    about = result["about"]
    what = f"{_family(about)}, {about['resolution']} pixels, {about['prediction_type']}, from {result['source']}"
    return f"Created {result['name']} in {result['folder']}: {what}"


def model_list(result: Result) -> str:
    if not result["models"]:
        return "There are no models yet; create makes one."
    rows = [
        [one["name"], one["problem"]]
        if one["problem"]
        else [one["name"], f"{_family(one['about'])}, from {one['source']}, {one['runs']} runs"]
        for one in result["models"]
    ]
    return table(rows)


def changed(result: Result) -> str:
    rows = [[f"  {key}", "empty" if value == "" else plain(value)] for key, value in result["changed"].items()]
    return f"{result['name']} has now:\n{table(rows)}" if rows else f"{result['name']} had all of that already."


def kept(result: Result) -> str:
    return f"This is {result['name']}, in {result['folder']}."


def deleted(result: Result) -> str:
    return (
        f"{result['name']} is in the trash; delete {result['trash']} to free its {size(result['bytes'])}. "
        "Its checkpoints and LoRAs stay where they are."
    )


def plan(result: Result) -> str:
    head = ["picture", "size", "trained at", "caption", ""]
    folder = _folder_of([one["path"] for one in result["pictures"]])
    lines = [f"In {folder}:"] if folder else []
    lines += [table([head] + [_picture(one, folder) for one in result["pictures"]]), ""]
    lines += [f"Not a picture: {path}" for path in result["strangers"]]
    shapes = ", ".join(f"{b['pictures']} at {b['width']}x{b['height']}" for b in result["buckets"])
    lines.append(f"Pictures: {shapes}")
    for one in result["class_pictures"]:
        counts = f"{one['there']} there, {one['wanted']} wanted, {one['missing']} to be made"
        lines.append(f"Class pictures: {counts} in {one['folder']}")
    if held := result["held_prompts"]:
        more = f" and {len(held) - 1} more" if len(held) > 1 else ""
        lines.append(f"Kept as the model predicts it, without class pictures: {held[0]}{more}")
    time = f", about {duration(result['seconds'])}" if result["seconds"] else ""
    images = f"{result['images_each_epoch']} pictures x {result['epochs']:g} epochs = {result['images']:,} images"
    before = f", after {result['steps_before']:,} that fit the words" if result["steps_before"] else ""
    lines.append(f"{images} in {result['steps']:,} steps{before}{time}")
    if result["memory"]:
        lines.append(f"Needs about {memory(result['memory']['total'])} of a GPU's memory (an estimate, not measured)")
        if result["advice"]:
            lines.append(result["advice"])
        saves = f"{result['saves']} x {size(result['save_bytes'])}" if result["saves"] > 1 else "the result"
        lines.append(
            f"Takes {size(result['disk_bytes'])} of disk at most: {saves} in {result['output_folder']}, "
            f"and {size(result['state_bytes'])} for each state"
        )
    if result["sheet"]:
        lines.append(f"Contact sheet: {result['sheet']}")
    return "\n".join(lines)


def finished(result: Result) -> str:
    where = f"at step {result['step']:,} of {result['steps']:,}" if result["steps"] else "before its first step"
    lines = [f"Run {result['run']} is {result['status']} {where}."]
    if result["status"] == "paused":
        lines.append(f"Go on with: python -m dreambooth resume {result['run']}")
    lines += [f"Written: {path}" for path in result["outputs"]]
    if result["previews"]:
        lines.append(f"Previews: {result['previews']}")
    return "\n".join(lines)


def run_list(result: Result) -> str:
    if not result["runs"]:
        return "There are no runs yet."
    head = ["run", "status", "step", "loss", "result"]
    rows = [
        [
            r["run"],
            r["status"],
            f"{r['step']:,}/{r['steps']:,}" if r["steps"] else "-",
            "-" if r["loss"] is None else f"{r['loss']:.4f}",
            (r["outputs"] or ["-"])[-1],
        ]
        for r in result["runs"]
    ]
    return table([head, *rows])


def asked(result: Result) -> str:
    return f"Asked {result['run']} to {result['asked']}."


def imported(result: Result) -> str:
    rows = [["", "there", "here", "value", ""]]
    for line in result["report"]:
        rows.append([line["fate"], line["theirs"], line["ours"] or "-", str(line["value"])[:60], line["why"]])
    return f"Read as {result['kind']}.\n\n{table(rows)}\n\nThese are now the settings of {result['name']}."


def tokens(result: Result) -> str:
    rows = [["word", "tokens", "changes a picture by"]]
    for one in result["words"]:
        strength = "" if one["strength"] is None else f"{one['strength']:.1%}"
        rows.append([one["word"], f"{len(one['tokens'])}: {' '.join(one['tokens'])}", strength])
    parts = len(result["chunks"])
    lines = [f"{result['tokens']} tokens, read in {'one piece' if parts == 1 else f'{parts} pieces of up to 75'}:"]
    lines += [f"    {chunk}" for chunk in result["chunks"]]
    if result["tokens"] > result["read_length"]:
        read = f"the first {result['read_length']} are read; set tuning.max_token_length to 150 or 225 for more"
        lines.append(f"Only {read}.")
    lines += ["", f"Measured in: {result['measured_in']}", "", table(rows)]
    if result["rare"]:
        rare = [f"{one['word']} {one['strength']:.1%}" for one in result["rare"][:6]]
        lines += ["", f"Rare words of one token that change this model's pictures least: {', '.join(rare)}"]
    return "\n".join(lines)


def class_pictures(result: Result) -> str:
    if "sheet" not in result:
        return "Stopped; the class pictures that were finished are kept, and the same command goes on."
    lines = [
        f"{one['pictures']} class pictures in {one['folder']}, {one['made']} new" for one in result["class_pictures"]
    ]
    return "\n".join([*lines, f"Shown on {result['sheet']}"])


def pictures(result: Result) -> str:
    return "\n".join(result["pictures"])


def sheet(result: Result) -> str:
    return f"{pictures(result)}\nAll on {result['sheet']}"


def exported(result: Result) -> str:
    return f"Written: {result['path']}"


def bench(result: Result) -> str:
    return _BENCHES[result["part"]](result)


def _file_bench(result: Result) -> str:
    rows = [["model", "file", "work", "seconds", "peak memory"]]
    for one in result["rows"]:
        family, file = FAMILIES[one["family"]], size(one["file_bytes"])
        rows.append([family, file, one["work"], f"{one['seconds']:.2f}", size(one["peak_bytes"])])
    return table(rows)


def _training_bench(result: Result) -> str:
    head = ["model", "method", "batch", "size", "who", "step (ms)", "processor (ms)", "images/s", "overhead (ms)"]
    rows = [[*head, "first step (s)", "processor (s)", "peak memory", "of the card's peak"]]
    for one in result["rows"]:
        share = "" if one["share_of_peak"] is None else f"{one['share_of_peak']:.0%}"
        rows.append(
            [
                FAMILIES[one["family"]],
                one["method"],
                str(one["batch"]),
                str(one["resolution"]),
                one["who"],
                f"{1000 * one['step_seconds']:.1f}",
                f"{1000 * one['step_processor_seconds']:.1f}",
                f"{one['images_per_second']:.1f}",
                f"{1000 * one['overhead_seconds']:.1f}",
                f"{one['first_step_seconds']:.1f}",
                f"{one['first_step_processor_seconds']:.1f}",
                size(one["device_peak_bytes"] or one["peak_bytes"]),
                share,
            ]
        )
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"{table(rows)}\n\n{versions}"


def _drawing_bench(result: Result) -> str:
    rows = [["who", "steps", "batch", "pictures/s", "processor, each (s)", "first picture (s)", "peak memory"]]
    for one in result["rows"]:
        seconds = [f"{one['pictures_per_second']:.2f}"]
        seconds += [f"{one['processor_seconds_each']:.2f}", f"{one['first_picture_seconds']:.1f}"]
        rows.append([one["who"], str(one["steps"]), str(one["batch"]), *seconds, size(one["peak_bytes"])])
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"{result['pictures']} pictures of {result['size']} pixels\n{table(rows)}\n\n{versions}"


def _sweep(result: Result) -> str:
    rows = [["", *FIGURES.values()]]
    rows += [[one["name"], *(f"{one[key]:.2f}" for key in FIGURES)] for one in result["rows"]]
    return f"{table(rows)}\n\n{table([['plot', result['plot']]])}"


def _memory_bench(result: Result) -> str:
    return f"Written: {result['path']}, {result['steps']} kinds of steps"


def _state_bench(result: Result) -> str:
    rows = [["state", "size", "torch.save (s)", "ours (s)", "training waits (s)"]]
    for one in result["saves"]:
        seconds = [f"{one[key]:.3f}" for key in ("plain_seconds", "seconds", "stalled_seconds")]
        rows.append([one["state"], size(one["bytes"]), *seconds])
    lost = [["training", "a step (ms)", "waits for a save (ms)", "lost in all for a save (ms)"]]
    for one in result["trainings"]:
        spans = [f"{1000 * one[key]:.1f}" for key in ("step_seconds", "stalled_seconds", "lost_seconds")]
        lost.append([one["method"], *spans])
    return f"{table(rows)}\n\n{table(lost)}"


def _choices_bench(result: Result) -> str:
    head = ["method", "choice", "step (ms)", "processor (ms)", "to plain", "of the processor", "between", "peak memory"]
    rows = [head]
    for one in result["rows"]:
        spans = [f"{1000 * one[key]:.0f}" for key in ("step_seconds", "step_processor_seconds")]
        ratios = [f"{one['to_plain'][key]:.2f}" for key in ("clock", "processor")]
        between = " to ".join(f"{value:.2f}" for value in one["between"])
        rows.append([one["method"], one["choice"], *spans, *ratios, between, size(one["peak_bytes"])])
    tiles = result["tiles"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    said = f"Decoding a picture in tiles: {tiles['clock']:.2f} times, {tiles['processor']:.2f} of the processor"
    return f"{table(rows)}\n\n{said}\n\n{versions}"


def _operation_bench(result: Result) -> str:
    rows = [["model", "method", "as usual, there", "back", "ours, there", "back", "ours to usual"]]
    for one in result["rows"]:
        usual, ours = one["usual"], one["ours"]
        share = f"{sum(ours) / sum(usual):.2f}"
        rows.append([FAMILIES[one["family"]], one["method"], *map(str, [*usual, *ours]), share])
    return table(rows)


_BENCHES = {
    "memory": _memory_bench,
    "training": _training_bench,
    "drawing": _drawing_bench,
    "files": _file_bench,
    "states": _state_bench,
    "sweep": _sweep,
    "choices": _choices_bench,
    "operations": _operation_bench,
    "plans": describe_card.plans,
    "card": describe_card.card,
}


def demo(result: Result) -> str:
    figures = result["figures"]
    head = ["", *FIGURES.values()]
    rows = [[name, *(f"{figures[name][key]:.2f}" for key in FIGURES)] for name in figures]
    places = [
        ["checkpoint", result["checkpoint"]],
        ["LoRA", result["lora"]],
        ["pictures", result["contact_sheet"]],
        ["report", result["report"]],
    ]
    return f"{table([head, *rows])}\n\n{table(places)}"


def _folder_of(files: list[str]) -> str:
    """The folder that all of them are in; empty where there is none."""
    try:
        return os.path.commonpath([Path(file).parent for file in files])
    except ValueError:  # no file, or files of different drives
        return ""


def _picture(one: Result, folder: str) -> list[str]:
    file = os.path.relpath(one["path"], folder) if folder else one["path"]
    if one["verdict"] == "error":
        return [file, "", "", one["prompt"], "cannot be read"]
    variants = f" in {len(one['crops'])} variants" if len(one["crops"]) > 1 else ""
    shape = f"{one['bucket'][0]}x{one['bucket'][1]}{variants}"
    more = f" (and {len(one['texts']) - 1} more)" if len(one["texts"]) > 1 else ""
    return [file, f"{one['width']}x{one['height']}", shape, one["prompt"] + more, "; ".join(one["warnings"])]
