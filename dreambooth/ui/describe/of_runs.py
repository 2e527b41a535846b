"""What the commands say of runs, from their plan to what came of them, in words for people."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dreambooth.core.formatting import duration, memory, percent, size
from dreambooth.service import exporting
from dreambooth.service.demo import FIGURES
from dreambooth.ui.terminal import table

Result = dict[str, Any]


def plan(result: Result) -> str:
    head = ["picture", "size", "trained at", "caption", ""]
    folder = _folder_of([one["path"] for one in result["pictures"]])
    lines = [f"In {folder}:"] if folder else []
    lines += [table([head] + [_picture(one, folder) for one in result["pictures"]]), ""]
    lines += [*result["remarks"], *(f"Not a picture: {path}" for path in result["strangers"])]
    shapes = ", ".join(f"{b['pictures']} at {b['width']}x{b['height']}" for b in result["buckets"])
    lines.append(f"Pictures: {shapes}")
    if out := sum(one["held_out"] for one in result["pictures"]):
        lines.append(f"{out} held out: not learned, only looked at, to tell when the run is best")
    if mirrored := result["mirrored"]:
        lines.append(f"Mirror images only looked at, to tell when the run is best: {mirrored}")
    if could := result["could_measure"]:
        lines.append(f"None held out: with --{could} the run would tell when it is best")
    for one in result["class_pictures"]:
        counts = f"{one['there']} there, {one['wanted']} wanted, {one['missing']} to be made"
        lines.append(f"Class pictures: {counts} in {one['folder']}")
    if kept := result["kept_prompts"]:
        more = f" and {len(kept) - 1} more" if len(kept) > 1 else ""
        lines.append(f"Kept as the model predicts it, without class pictures: {kept[0]}{more}")
    time = f", about {duration(result['seconds'])}" if result["seconds"] else ""
    images = (
        f"{result['images_each_epoch']} pictures x {result['epochs']:g} epochs = {result['images']:,} pictures seen"
    )
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


def crops(result: Result) -> str:
    """Where pictures are cropped by hand."""
    if not result["crops"]:
        return "" if result["problems"] else f"No crop is chosen by hand ({result['pictures']} pictures)."
    return table([[one["picture"], _crop(one["crop"])] for one in result["crops"]])


def _crop(point: Result | None) -> str:
    if point is None:
        return "automatic"
    tighter = f", {point['zoom']:g} times tighter" if point["zoom"] > 1 else ""
    return f"around {point['x']:.0%} from the left, {point['y']:.0%} from the top{tighter}"


def finished(result: Result) -> str:
    where = f"at step {result['step']:,} of {result['steps']:,}" if result["steps"] else "before its first step"
    lines = [f"Run {result['run']} is {result['status']} {where}."]
    if result["status"] == "done" and result["step"] < result["steps"]:
        lines.append("It ended by itself, as it was past its best for as long as its patience.")
        if result["resumable"]:
            lines.append(f"Go on without patience: python -m dreambooth resume {result['run']}")
    if result["status"] == "paused":
        lines.append(f"Go on with: python -m dreambooth resume {result['run']}")
    lines += [f"Written: {path}" for path in result["outputs"] if path not in result["embeddings"].values()]
    for word, path in result["embeddings"].items():
        lines.append(f"Written: {path}: in a WebUI's prompts write {Path(path).stem} for {word}")
    if result["best"]:
        lines.append(_best(result["best"], result["measured"]))
    if result["previews"]:
        lines.append(f"Previews: {result['previews']}")
    return "\n".join(lines)


def _best(best: Result, last: Result) -> str:
    """What the pictures that it does not learn say of a run."""
    if best["held_out"] <= 0:
        return "Pictures that it does not learn are predicted no better than before the run."
    better = f"pictures that it does not learn are predicted {percent(best['held_out'])} better than before"
    if best["images"] == last["images"]:
        return f"Best at its end: {better}."
    at_last = f"after {last['images']:,} it was {percent(last['held_out'])}"
    return f"Best after {best['images']:,} pictures seen: {better}; {at_last}."


def run_list(result: Result) -> str:
    if not result["runs"]:
        return f"There are no runs yet in {result['folder']}."
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
    if result["asked"] in ("save", "preview"):
        does = "write what it has learned" if result["asked"] == "save" else "draw previews"
        return f"Asked {result['title']} to {does} now; it goes on."
    return f"Asked {result['title']} to {result['asked']}."


def class_pictures(result: Result) -> str:
    if "sheet" not in result:
        return "Stopped; the class pictures that were finished are kept, and the same command goes on."
    lines = [
        f"{one['pictures']} class pictures in {one['folder']}, {one['made']} new" for one in result["class_pictures"]
    ]
    shown = [f"Shown on {result['sheet']}"] if result["sheet"] else []
    return "\n".join([*lines, *shown])


def captions(result: Result) -> str:
    written = result["captions"]
    if not result["asked"]:
        return "All pictures have captions; --over replaces them."
    lines = [f"{Path(one['picture']).name}: {one['caption']}" for one in written]
    return "\n".join([*lines, f"{len(written)} of {result['asked']} pictures got a caption."])


def pictures(result: Result) -> str:
    return "\n".join(result["pictures"])


def sheet(result: Result) -> str:
    return f"{pictures(result)}\nAll on {result['sheet']}"


def exported(result: Result) -> str:
    files = dict.fromkeys([result["path"], *result["embeddings"].values()])
    return "\n".join([*(f"Written: {file}" for file in files), *filter(None, [exporting.remark(result)])])


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
    marks = {"crop by hand": one["chosen"], "held out": one["held_out"]}
    remarks = [*one["warnings"], *(mark for mark, is_so in marks.items() if is_so)]
    return [file, f"{one['width']}x{one['height']}", shape, one["prompt"] + more, "; ".join(remarks)]
