"""kohya's dataset files (.toml) and its folders that are named after repeats and class, such as `10_sks dog`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dreambooth.core.captions import FILEWORDS
from dreambooth.core.migrate.report import Look, Migration, number, side

FOLDER = re.compile(r"(\d+)_(.*)")

SAME = {
    "enable_bucket": "pictures.buckets",
    "bucket_no_upscale": "pictures.no_upscale",
    "bucket_reso_steps": "pictures.bucket_step",
    "min_bucket_reso": "pictures.bucket_min_side",
    "max_bucket_reso": "pictures.bucket_max_side",
    "flip_aug": "pictures.hflip",
    "shuffle_caption": "captions.shuffle_tags",
    "keep_tokens": "captions.keep_tags",
    "keep_tokens_separator": "captions.keep_marker",
    "secondary_separator": "captions.tie",
    "caption_tag_dropout_rate": "captions.tag_dropout",
    "caption_dropout_rate": "captions.dropout",
    "caption_dropout_every_n_epochs": "captions.dropout_every",
    "caption_prefix": "captions.prefix",
    "caption_suffix": "captions.suffix",
}
_AROUND = "a comma parts it from the caption here, a space there, and here it is never shuffled"
_OTHERWISE = {
    "caption_prefix": _AROUND,
    "caption_suffix": _AROUND,
    "caption_tag_dropout_rate": "drawn for each of captions.variants texts here, anew at each step there",
}
_GRAPHIC = "slight turns of the hue, or gamma, there"
_OUTSIDE = "what is transparent counted not at all there"
CHANGED: dict[str, tuple[tuple[str, Any, str], ...]] = {  # what is on there: our settings for it, and what differs
    "random_crop": (("pictures.crop", "random", "a random crop"),),
    "color_aug": (("pictures.brightness", 0.05, _GRAPHIC), ("pictures.colour", 0.05, _GRAPHIC)),
    "alpha_mask": (
        ("objective.masked", True, "a mask in a file of its own counts before a picture's transparency"),
        ("objective.unmasked_weight", 0.0, _OUTSIDE),
    ),
}
LEFT = {  # what is there besides, and where to look for it here
    "enable_wildcard": "{a|b} and captions of several lines always work",
    "cache_info": "always so",
    "face_crop_aug_range": (
        "pictures.crop smart keeps what stands out, and pictures.crop_jitter cuts tighter; neither knows faces"
    ),
    "caption_separator": "parts are parted by commas alone",
    "token_warmup_min": "all parts of a caption are read from the first step on",
    "token_warmup_step": "all parts of a caption are read from the first step on",
    "validation_split": "concepts.N.held_out says how many pictures are only looked at",
    "validation_seed": "which pictures are held out follows from general.seed",
    "conditioning_data_dir": "put masks beside the pictures as NAME-mask.png, or into masks, for objective.masked",
    "metadata_file": "captions are read from a .txt beside each picture",
    "max_token_length": "set tuning.max_token_length: 150 and 225 are longer",
    "prior_loss_weight": "set tuning.prior_loss_weight",
}
_OWN = {"image_dir", "class_tokens", "is_reg", "num_repeats", "caption_extension"}
_NOTHING: tuple[Any, ...] = (None, False, 0, 0.0, "", [], ",")
_NOT_TRAINED = "it is not trained there either"
_DEFAULT_SUFFIX = ".caption"
BOTH_SUFFIXES = (".txt", ".caption")  # of captions that are read here


@dataclass(frozen=True)
class Part:
    """A folder of pictures: of the subject, or of the class where `is_class`."""

    where: str
    folder: str
    words: str
    repeats: int
    suffixes: tuple[str, ...]
    is_class: bool


def from_toml(theirs: Mapping[str, Any], look: Look) -> Migration:
    """The settings of a dataset .toml, as a nested dictionary: [general], [[datasets]], [[datasets.subsets]]."""
    into, parts = Migration(), list[Part]()
    general = _table(theirs.get("general"))
    for place, one in enumerate(map(_table, _list(theirs.get("datasets")))):
        inherited = {**general, **{key: value for key, value in one.items() if key != "subsets"}}
        _shared(f"datasets {place}", inherited, into)
        if "enable_bucket" not in inherited:
            into.take(f"datasets {place}: enable_bucket", "pictures.buckets", False, "off there unless it is asked for")
        for row, subset in enumerate(map(_table, _list(one.get("subsets")))):
            where = f"datasets {place}, subset {row}"
            own = {**inherited, **subset}
            if not str(own.get("image_dir") or "").strip():
                into.leave(where, "", "it names no image_dir")
                continue
            if number(own.get("num_repeats", 1)) < 1:
                into.leave(f"{where}: num_repeats", own["num_repeats"], _NOT_TRAINED)
                continue
            parts.append(_part(where, own))
            for key in (key for key in subset if key not in _OWN):
                take_one(f"{where}: {key}", key, subset[key], into)
    varied = any(into.settings.get(f"captions.{name}") for name in ("shuffle_tags", "tag_dropout"))
    if varied and "captions.keep_tags" not in into.settings:
        into.take("keep_tokens", "captions.keep_tags", 0, "none is kept there unless it is asked for")
    _arrange(parts, look, into)
    return into


def from_folders(
    train: Iterable[tuple[str, str]],
    of_class: Iterable[tuple[str, str]],
    look: Look,
    suffixes: tuple[str, ...] = BOTH_SUFFIXES,
    into: Migration | None = None,
) -> Migration:
    """The settings that folders' names say, each given as (name, path): `10_sks dog` is "sks dog", seen ten times.

    A name may follow what the folder is in, and a comma: `train_data_dir, 10_sks dog`.
    """
    into, parts = Migration() if into is None else into, list[Part]()
    for is_class, some in ((False, train), (True, of_class)):
        for name, path in some:
            match = FOLDER.fullmatch(name.rpartition(", ")[2] if not FOLDER.fullmatch(name) else name)
            if match and not int(match[1]):
                into.leave(name, path, _NOT_TRAINED)
            elif match:
                parts.append(Part(name, path, match[2].strip(), int(match[1]), suffixes, is_class))
    _arrange(parts, look, into)
    return into


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _part(where: str, own: Mapping[str, Any]) -> Part:
    suffix = str(own.get("caption_extension") or _DEFAULT_SUFFIX)
    words, repeats = str(own.get("class_tokens") or "").strip(), int(number(own.get("num_repeats"), 1))
    return Part(where, str(own["image_dir"]), words, repeats, (suffix,), bool(own.get("is_reg")))


def _shared(where: str, inherited: Mapping[str, Any], into: Migration) -> None:
    """What is said for a whole dataset."""
    for key, value in inherited.items():
        if key in _OWN:
            continue
        if key == "resolution":
            side(f"{where}: resolution", value, into)
        elif key == "batch_size":
            into.take(f"{where}: batch_size", "batching.train_batch_size", value)
        else:
            take_one(f"{where}: {key}", key, value, into)


def take_one(theirs: str, key: str, value: Any, into: Migration) -> None:
    ours = SAME.get(key)
    if key in CHANGED and value:
        for own, our_value, why in CHANGED[key]:
            into.take(theirs, own, our_value, why)
    elif ours and into.settings.get(ours, value) != value:
        into.leave(theirs, value, f"{ours} is one for all pictures here, and its first value stands")
    elif ours:
        into.take(theirs, ours, value, _OTHERWISE.get(key, "") if value else "")
    elif value not in _NOTHING:
        into.leave(theirs, value, LEFT.get(key, "there is no such setting here"))


def _arrange(parts: list[Part], look: Look, into: Migration) -> None:
    """A concept for each folder of the subject, with the class folder that its words name."""
    subjects, classes = ([p for p in parts if p.is_class is kind] for kind in (False, True))
    used: set[Part] = set()
    for row, part in enumerate(subjects):
        key = f"concepts.{row}"
        into.take(f"{part.where}: image_dir", f"{key}.instance_data_dir", part.folder)
        _prompt(part, f"{key}.instance_prompt", look, into)
        into.take(f"{part.where}: num_repeats", f"{key}.repeats", part.repeats)
        own = [one for one in classes if _names(part.words, one.words)] or (classes if len(classes) == 1 else [])
        if own:
            used.add(own[0])
            _prompt(own[0], f"{key}.class_prompt", look, into)
            into.take(f"{own[0].where}: image_dir", f"{key}.class_data_dir", own[0].folder)
            into.take(f"{own[0].where}: is_reg", f"{key}.class_mode", "folder")
        else:
            into.take(part.where, f"{key}.class_mode", "off", "no class folder fits its words")
    for part in classes:
        if part not in used:
            into.leave(part.where, part.folder, "no concept's words hold this class; name it as class_data_dir of one")


def _prompt(part: Part, ours: str, look: Look, into: Migration) -> None:
    """The pictures' captions where they have any, else the class_tokens, as kohya takes them."""
    seen = look(part.folder)
    captioned = sum(seen.captions.get(suffix, 0) for suffix in part.suffixes)
    if not captioned:
        into.take(f"{part.where}: class_tokens", ours, part.words)
        return
    why = "the text files beside the pictures"
    if captioned < seen.pictures:
        missing = seen.pictures - captioned
        why += f"; {missing} of {seen.pictures} have none and take their file's name, not {part.words!r}"
    into.take(f"{part.where}: captions", ours, FILEWORDS, why)
    odd = [suffix for suffix in part.suffixes if suffix not in BOTH_SUFFIXES]
    if odd:
        into.leave(f"{part.where}: caption_extension", odd[0], "only .txt and .caption are read; rename the files")


def _names(words: str, of_class: str) -> bool:
    return bool(of_class) and set(of_class.lower().split()) <= set(words.lower().split())
