"""OneTrainer's concepts: folders, captions, and how pictures vary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreambooth.core.captions import FILEWORDS
from dreambooth.core.migrate.disk import Disk
from dreambooth.core.migrate.onetrainer.controls import BY_KEY
from dreambooth.core.migrate.reading import Reading, exact, nothing
from dreambooth.core.migrate.report import Migration, number

_NOTES = {"name", "seed", "concept_stats"}
_VARIED = {  # what is on there: ours, and how much of it
    "image.enable_random_flip": ("pictures.hflip", ""),
    "image.enable_random_rotate": ("pictures.rotation", "image.random_rotate_max_angle"),
    "image.enable_random_brightness": ("pictures.brightness", "image.random_brightness_max_strength"),
    "image.enable_random_saturation": ("pictures.colour", "image.random_saturation_max_strength"),
}
_STRENGTHS = {of: key for key, (_, of) in _VARIED.items() if of}
_ELSEWHERE = "there is no such change of a picture or caption here"


def take(read: Reading, disk: Disk) -> None:
    listed, place = read.theirs.get("concepts"), "concepts"
    if not isinstance(listed, list) and read.is_given("concept_file_name"):
        file, place = str(read.theirs["concept_file_name"]), "concept_file_name"
        listed = disk.parsed(file)
        if not isinstance(listed, list):
            why = disk.problem(file) or "it is no list of concepts"
            read.leave(place, f"{why}: {file}; import it too, or write the concepts anew")
    elif "concept_file_name" in read.theirs:
        read.leave("concept_file_name", "the concepts are in this file")
    if not isinstance(listed, list):
        return
    row = 0
    for number_, one in enumerate(listed):
        where = f"{place}, concept {number_}"
        if _is_taken(where, one, read.into):
            _one(where, f"concepts.{row}", _flat(one), disk, read.into)
            row += 1


def _is_taken(where: str, one: Any, into: Migration) -> bool:
    if not isinstance(one, Mapping) or not str(one.get("path") or "").strip():
        into.leave(where, None, "it names no folder of pictures")
    elif one.get("enabled") is False:
        into.leave(f"{where}: enabled", False, "it is off there")
    elif one.get("type") == "VALIDATION" or one.get("validation_concept") is True:
        into.leave(f"{where}: type", one["path"], f"concepts.N.held_out: {BY_KEY['type'].why}")
    elif one.get("type") == "PRIOR_PREDICTION":
        into.leave(f"{where}: type", one["path"], f"concepts.N.class_mode: {BY_KEY['type'].why}")
    else:
        return True
    return False


def _flat(one: Mapping[str, Any]) -> dict[str, Any]:
    inner = {key: one.get(key) for key in ("image", "text")}
    found = {key: value for key, value in one.items() if key not in inner}
    for key, some in inner.items():
        found |= {f"{key}.{name}": value for name, value in some.items()} if isinstance(some, Mapping) else {}
    return found


def _one(where: str, ours: str, one: Mapping[str, Any], disk: Disk, into: Migration) -> None:
    folder = str(one["path"]).strip()
    into.take(f"{where}: path", f"{ours}.instance_data_dir", folder)
    into.take(f"{where}: type", f"{ours}.class_mode", "off", "there are no pictures of a class there")
    if problem := disk.problem(folder):
        into.leave(f"{where}: path", folder, f"{problem}; write where the pictures are")
    _prompt(where, ours, one, disk, into)
    _balance(where, ours, one, into)
    if not nothing(one.get("loss_weight")):
        into.take(f"{where}: loss_weight", f"{ours}.loss_weight", exact(one["loss_weight"]))
    if one.get("include_subdirectories") is False:
        into.leave(f"{where}: include_subdirectories", False, BY_KEY["include_subdirectories"].reason)
    _varied(where, one, into)
    _words(where, one, into)
    told = {theirs.rpartition(": ")[2] for line in into.lines for theirs in [line.theirs] if theirs.startswith(where)}
    known = {"path", "enabled", "type", "text.prompt_source", "text.prompt_path", "loss_weight"}
    for key in sorted(one.keys() - told - known - _NOTES):
        if not nothing(one[key]) and not (key in _STRENGTHS and nothing(one.get(_STRENGTHS[key]))):
            _rest(where, key, one, into)


def _rest(where: str, key: str, one: Mapping[str, Any], into: Migration) -> None:
    enabled = f"image.enable_{key.removeprefix('image.').removesuffix('_max_strength').removesuffix('_override')}"
    is_off = (key.endswith(("_max_strength", "_override")) and nothing(one.get(enabled))) or (
        key.startswith(("text.tag_dropout_", "text.caps_randomize_"))
        and nothing(one.get("text.tag_dropout_enable" if "tag_dropout" in key else "text.caps_randomize_enable"))
    )
    is_off |= key in ("text.tag_delimiter", "text.keep_tags_count")  # which stand for nothing by themselves
    is_off |= key == "text.tag_dropout_special_tags_mode" and one[key] == "NONE"
    if is_off:
        return
    into.leave(f"{where}: {key}", exact(one[key]), BY_KEY[key].reason if key in BY_KEY else _ELSEWHERE)


def _prompt(where: str, ours: str, one: Mapping[str, Any], disk: Disk, into: Migration) -> None:
    source, theirs = str(one.get("text.prompt_source") or "sample"), f"{where}: text.prompt_source"
    if source == "concept":
        file = str(one.get("text.prompt_path") or "").strip()
        lines = [line.strip() for line in (disk.text(file) or "").splitlines() if line.strip()]
        if len(lines) == 1:
            into.take(f"{where}: text.prompt_path", f"{ours}.instance_prompt", lines[0], f"what {file} says")
        else:
            why = (
                "it has several lines, of which each picture gets any"
                if lines
                else f"there is no such text here: {file}"
            )
            into.leave(f"{where}: text.prompt_path", file, f"{why}; write {ours}.instance_prompt")
        return
    seen = disk.look(str(one["path"]))
    why = "the text files beside the pictures"
    if source == "filename" and seen.captions.get(".txt"):
        why += ", which there are, and not their names"
    elif source == "filename":
        why = "a picture without a text file has its own name as caption"
    into.take(theirs, f"{ours}.instance_prompt", FILEWORDS, why)


def _balance(where: str, ours: str, one: Mapping[str, Any], into: Migration) -> None:
    if one.get("balancing") is None:
        return
    much, theirs = number(one["balancing"], 1.0), f"{where}: balancing"
    if str(one.get("balancing_strategy") or "REPEATS") != "REPEATS":
        why = f"{much:g} pictures an epoch; here concepts.N.repeats says how often each is seen"
        into.leave(theirs, exact(one["balancing"]), why)
        into.leave(f"{where}: balancing_strategy", one["balancing_strategy"], BY_KEY["balancing"].reason)
    else:
        whole = max(1, round(much))
        into.take(theirs, f"{ours}.repeats", whole, "" if whole == much else f"{much:g} as a whole number")
        into.lines = [line for line in into.lines if line.theirs != f"{where}: balancing_strategy"]
        if "balancing_strategy" in one:
            into.take(f"{where}: balancing_strategy", f"{ours}.repeats", whole)


def _varied(where: str, one: Mapping[str, Any], into: Migration) -> None:
    """One for all concepts, and only where a picture has several versions."""
    versions = number(one.get("image_variations"), 1)
    if versions > 1:
        into.take(f"{where}: image_variations", "pictures.variants", int(versions), "one for all concepts")
        if one.get("image.enable_crop_jitter", True):
            into.take(
                f"{where}: image.enable_crop_jitter", "pictures.crop", "random", BY_KEY["image.enable_crop_jitter"].why
            )
    for key, (ours, strength) in _VARIED.items():
        if nothing(one.get(key)):
            continue
        if versions <= 1:
            into.leave(f"{where}: {key}", True, f"{ours}: {BY_KEY['image_variations'].why}")
        else:
            into.take(f"{where}: {key}", ours, exact(one.get(strength)) if strength else True, BY_KEY[key].why)
            if strength in one:
                into.take(f"{where}: {strength}", ours, exact(one[strength]), BY_KEY[key].why)


def _words(where: str, one: Mapping[str, Any], into: Migration) -> None:
    shuffles, drops = (not nothing(one.get(f"text.{name}")) for name in ("enable_tag_shuffling", "tag_dropout_enable"))
    if shuffles:
        why = BY_KEY["text.enable_tag_shuffling"].why
        into.take(f"{where}: text.enable_tag_shuffling", "captions.shuffle_tags", True, why)
    drops = drops and _tag_dropout(where, one, into)
    if shuffles or drops:
        why, kept = BY_KEY["text.keep_tags_count"].why, exact(one.get("text.keep_tags_count", 1))
        into.take(f"{where}: text.keep_tags_count", "captions.keep_tags", kept, why)
        delimiter, control = str(one.get("text.tag_delimiter") or ",").strip(), BY_KEY["text.tag_delimiter"]
        if delimiter == ",":
            ours = control.ours[0] if shuffles else control.ours[1]
            into.take(f"{where}: text.tag_delimiter", ours, into.settings[ours])
        else:
            into.leave(f"{where}: text.tag_delimiter", one["text.tag_delimiter"], control.why)
    if number(one.get("text_variations")) > 1:
        into.take(
            f"{where}: text_variations", "captions.variants", exact(one["text_variations"]), "one for all concepts"
        )


def _tag_dropout(where: str, one: Mapping[str, Any], into: Migration) -> bool:
    """Whether it is anything that there is here."""
    mode = str(one.get("text.tag_dropout_mode") or "FULL")
    if not mode.startswith("RANDOM"):
        return False
    why, chance = BY_KEY["text.tag_dropout_mode"].why, number(one.get("text.tag_dropout_probability"))
    for key in ("tag_dropout_enable", "tag_dropout_mode", "tag_dropout_probability"):
        into.take(f"{where}: text.{key}", "captions.tag_dropout", chance, why)
    some = str(one.get("text.tag_dropout_special_tags") or "").strip()
    is_list = not some.endswith((".txt", ".csv")) and nothing(one.get("text.tag_dropout_special_tags_regex"))
    if some and is_list and one.get("text.tag_dropout_special_tags_mode") == "WHITELIST":
        for key in ("tag_dropout_special_tags", "tag_dropout_special_tags_mode"):
            into.take(f"{where}: text.{key}", "captions.tag_dropout_except", some, "one for all concepts")
    return "captions.tag_dropout" in into.settings
