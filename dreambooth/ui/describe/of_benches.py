"""What was measured, in tables for people."""

from __future__ import annotations

from typing import Any

from dreambooth.core.formatting import size
from dreambooth.core.models.families import FAMILIES
from dreambooth.service.demo import FIGURES
from dreambooth.ui.describe import of_cards
from dreambooth.ui.terminal import table

Result = dict[str, Any]


def bench(result: Result) -> str:
    return _BENCHES[result["part"]](result)


def _file_bench(result: Result) -> str:
    rows = [["model", "file", "work", "seconds", "peak memory"]]
    for one in result["rows"]:
        family, file = FAMILIES[one["family"]], size(one["file_bytes"])
        rows.append([family, file, one["work"], f"{one['seconds']:.2f}", size(one["peak_bytes"])])
    return table(rows)


def _training_bench(result: Result) -> str:
    head = ["model", "method", "trained", "batch", "size", "who", "step (ms)", "CPU (ms)", "images/s", "overhead (ms)"]
    rows = [[*head, "first step (s)", "CPU (s)", "peak memory", "of the card's peak"]]
    losses = [["model", "method", "who", "losses of the first steps"]]
    for one in result["rows"]:
        share = "" if one["share_of_peak"] is None else f"{one['share_of_peak']:.0%}"
        method = f"lora {one['rank']}, {one['layers']}" if one["method"] == "lora" else one["method"]
        rows.append(
            [
                FAMILIES[one["family"]],
                method,
                f"{one['trained']:,}",
                str(one["batch"]),
                str(one["resolution"]),
                one["who"],
                f"{1000 * one['step_seconds']:.1f}",
                f"{1000 * one['step_cpu_seconds']:.1f}",
                f"{one['images_per_second']:.1f}",
                f"{1000 * one['overhead_seconds']:.1f}",
                f"{one['first_step_seconds']:.1f}",
                f"{one['first_step_cpu_seconds']:.1f}",
                size(one["device_peak_bytes"] or one["peak_bytes"]),
                share,
            ]
        )
        losses.append([FAMILIES[one["family"]], method, one["who"], " ".join(f"{loss:.3f}" for loss in one["losses"])])
    warned = [f"{one['family']} {one['method']}: {said}" for one in result["rows"] for said in one.get("warnings", ())]
    theirs = [f"{one['who']}: {_versions(one['versions'])}" for one in result["rows"] if one["versions"]]
    tables = [table(rows), *_ratios(result["ratios"]), table(losses)]
    said = [*(f"Failed: {one}" for one in result["failed"]), *warned, _versions(result["versions"]), *theirs]
    return "\n\n".join([*tables, *dict.fromkeys(said)])


def _ratios(found: list[dict[str, Any]]) -> list[str]:
    """What we are to each peer, as one table; none without a peer."""
    about = ["model", "method", "batch", "size", "beside"]
    rows = [[*about, "steps", "for the CPU", "start", "for the CPU", "memory"]]
    for one in found:
        about = [FAMILIES[one["family"]], one["method"], str(one["batch"]), str(one["resolution"]), one["who"]]
        kinds = ("steps", "steps_of_cpu", "start", "start_of_cpu", "memory")
        rows.append([*about, *(f"{one[kind]:.2f} x" for kind in kinds)])
    return [table(rows)] if found else []


def _versions(some: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in some.items())


def _drawing_bench(result: Result) -> str:
    rows = [["who", "steps", "batch", "pictures/s", "CPU, each (s)", "first picture (s)", "peak memory"]]
    for one in result["rows"]:
        seconds = [f"{one['pictures_per_second']:.2f}"]
        seconds += [f"{one['cpu_seconds_each']:.2f}", f"{one['first_picture_seconds']:.1f}"]
        rows.append([one["who"], str(one["steps"]), str(one["batch"]), *seconds, size(one["peak_bytes"])])
    return f"{result['pictures']} pictures of {result['size']} pixels\n{table(rows)}\n\n{_versions(result['versions'])}"


def _sweep(result: Result) -> str:
    rows = [["", *FIGURES.values()]]
    rows += [[one["name"], *(f"{one[key]:.2f}" for key in FIGURES)] for one in result["rows"]]
    return f"{table(rows)}\n\n{table([['plot', result['plot']]])}"


def _best_bench(result: Result) -> str:
    rows = [["likeness on other backgrounds", "where it says", "at its end", "at most"]]
    for one in result["rows"]:
        moments = [f"{one[f'{at}_worth']:.2f} at {one[f'{at}_images']:,}" for at in ("best", "end", "highest")]
        rows.append([one["name"], *moments])
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
    head = ["method", "choice", "step (ms)", "CPU (ms)", "to plain", "of the CPU", "between", "peak memory"]
    rows = [head]
    for one in result["rows"]:
        spans = [f"{1000 * one[key]:.0f}" for key in ("step_seconds", "step_cpu_seconds")]
        ratios = [f"{one['to_plain'][key]:.2f}" for key in ("clock", "cpu")]
        between = " to ".join(f"{value:.2f}" for value in one["between"])
        rows.append([one["method"], one["choice"], *spans, *ratios, between, size(one["peak_bytes"])])
    tiles = result["tiles"]
    decoding = f"Decoding a picture in tiles: {tiles['clock']:.2f} times, {tiles['cpu']:.2f} of the CPU"
    return f"{table(rows)}\n\n{decoding}\n\n{_versions(result['versions'])}"


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
    "best": _best_bench,
    "choices": _choices_bench,
    "operations": _operation_bench,
    "plans": of_cards.plans,
    "card": of_cards.card,
}
