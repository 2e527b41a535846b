"""What the commands say of models, files and settings, in words for people."""

from __future__ import annotations

from typing import Any

from dreambooth.core import reference, schema
from dreambooth.core.engine_capabilities import FAULTS
from dreambooth.core.formatting import memory, size
from dreambooth.core.models.checkpoint import family_name
from dreambooth.core.models.families import FAMILIES
from dreambooth.core.settings import Settings
from dreambooth.core.values import plain
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
        ["is", f"{layout}, {family_name(result)}, {result['precision']}, {size(result['bytes'])}"],
        ["holds", ", ".join([f"{result['parameters']:,} values in {result['tensors']:,} tensors", *parts])],
    ]
    if result["kind"] == "checkpoint":
        terminal = ", zero terminal SNR" if result["zero_terminal_snr"] else ""
        prediction = f"{result['prediction_type']} prediction{terminal} ({_KNOWN_BY[result['known_by']]})"
        rows.append(["made for", f"{result['resolution']} pixels, {prediction}"])
    if result["stray"]:
        rows.append(["also holds", f"{', '.join(result['stray'])} (kept, not used)"])
    if result["ranks"]:
        rows.append(["rank", ranks(result["ranks"])])
    if result["trained_words"]:
        rows.append(["trained on", ", ".join(result["trained_words"])])
    if result["trainer"]:
        of_base = f", from {base}" if (base := result["metadata"].get("dreambooth.base")) else ""
        rows.append(["trained by", f"{result['trainer']}{of_base}"])
    rows.append(["training", result["reason"] or "can be trained from"])
    return table(rows)


def ranks(found: list[int]) -> str:
    """16, or 4 to 32 where the layers differ."""
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def presets(result: Result) -> str:
    lines = []
    for one in result["presets"]:
        rows = [[f"    {s['setting']}", _value(s), s["reason"]] for s in one["settings"]]
        lines.append(f"{one['name']}: {one['label']}. {one['meaning']}\n{table(rows)}\n")
    return "\n".join([*lines, "Take one with: train NAME --preset person. Flags win over it."])


def _value(row: Result) -> str:
    enough = f" with {row['from_pictures']} pictures or more" if row["from_pictures"] else ""
    return f"{row['value']}{enough}"


def performance(result: Result) -> str:
    if "plans" not in result:
        set_now = f"These are now the settings of {result['name']}."
        return "\n".join([result["why"], *result["flags"], *([set_now] if result["applied"] else [])])
    rows = [["model", "method", "card", "needs", "settings"]]
    for one in result["plans"]:
        changes = " ".join(one["flags"]) or "as they are"
        needs = f"{memory(one['needs']['total'])}{'' if one['fits'] else ', too much'}"
        rows.append([FAMILIES[one["family"]], one["method"], f"{one['card_bytes'] / 2**30:g} GB", needs, changes])
    return table(rows)


def created(result: Result) -> str:
    about = result["about"]
    what = f"{family_name(about)}, {about['resolution']} pixels, {about['prediction_type']}, from {result['source']}"
    return f"Created {result['name']} in {result['folder']}: {what}"


def model_list(result: Result) -> str:
    if not result["models"]:
        return f"There are no models yet in {result['folder']}; create makes one."
    rows = [
        [one["name"], one["problem"]]
        if one["problem"]
        else [one["name"], f"{family_name(one['about'])}, from {one['source']}, {one['runs']} runs"]
        for one in result["models"]
    ]
    return table(rows)


def changed(result: Result) -> str:
    rows = [[f"  {key}", "empty" if value == "" else plain(value)] for key, value in result["changed"].items()]
    return f"{result['name']} has now:\n{table(rows)}" if rows else f"{result['name']} had all of that already."


def settings(result: Result) -> str:
    """Every setting that there is; of a model those that are not at their defaults."""
    if "name" not in result:
        return reference.markdown(Settings).rstrip()
    defaults = {leaf.key: leaf.default for leaf in schema.leaves(Settings)}
    other = {key: value for key, value in result["settings"].items() if value != defaults[schema.general(key)]}
    if not other:
        return f"{result['name']} has every setting at its default."
    rows = [[f"  {key}", "empty" if value == "" else plain(value)] for key, value in other.items()]
    return f"{result['name']} has, besides the defaults:\n{table(rows)}"


def undone(result: Result) -> str:
    return f"The settings of {result['name']} are as they were before."


def told(result: Result) -> str:
    return str(result["done"])


def kept(result: Result) -> str:
    return f"This is {result['name']}, in {result['folder']}."


def deleted(result: Result) -> str:
    return (
        f"{result['name']} is in the trash; delete {result['trash']} to free its {size(result['bytes'])}. "
        "Its checkpoints and LoRAs stay where they are."
    )


def imported(result: Result) -> str:
    rows = [["", "there", "here", "value", ""]]
    for line in result["report"]:
        value = "" if line["value"] is None else plain(line["value"])[:60]
        rows.append([line["fate"], line["theirs"], line["ours"] or "-", value, line["why"]])
    return f"Read as {result['kind']}.\n\n{table(rows)}\n\nThese are now the settings of {result['name']}."


def tokens(result: Result) -> str:
    rows = [["word", "tokens", "changes a picture by", "to this model"]]
    for one in result["words"]:
        strength = "" if one["strength"] is None else f"{one['strength']:.1%}"
        known = {True: "means something", False: "means hardly anything", None: ""}[one["known"]]
        rows.append([one["word"], f"{len(one['tokens'])}: {' '.join(one['tokens'])}", strength, known])
    parts = len(result["chunks"])
    count = "1 token" if result["tokens"] == 1 else f"{result['tokens']} tokens"
    lines = [f"{count}, read in {'one piece' if parts == 1 else f'{parts} pieces of up to 75'}:"]
    lines += [f"    {chunk}" for chunk in result["chunks"]]
    if result["tokens"] > result["read_length"]:
        read = f"the first {result['read_length']} are read; set tuning.max_token_length to 150 or 225 for more"
        lines.append(f"Only {read}.")
    lines += ["", f"Measured in: {result['measured_in']}", "", table(rows)]
    if result["rare"]:
        rare = [f"{one['word']} {one['strength']:.1%}" for one in result["rare"][:6]]
        lines += ["", f"Rare words of one token that change this model's pictures least: {', '.join(rare)}"]
    return "\n".join(lines)
