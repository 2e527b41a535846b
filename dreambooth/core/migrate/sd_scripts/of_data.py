"""kohya's folders of pictures, and how pictures and captions are read."""

from __future__ import annotations

from math import ceil

from dreambooth.core.migrate import kohya_dataset, rates
from dreambooth.core.migrate.disk import Disk
from dreambooth.core.migrate.reading import Reading, fitting
from dreambooth.core.migrate.report import side

_ELSEWHERE = ("max_token_length", "caption_extension")  # settings of a run there, too


def take(read: Reading, disk: Disk, *, whole: bool) -> None:
    _folders(read, disk, whole=whole)
    if read.is_given("resolution"):
        side(read.names.get("resolution", "resolution"), read.theirs["resolution"], read.into)
    for key in (*kohya_dataset.SAME, *kohya_dataset.CHANGED, *kohya_dataset.LEFT):
        if (
            key in read.theirs
            and key not in read.table
            and key not in _ELSEWHERE
            and (read.is_given(key) or key == "enable_bucket")
        ):
            value = fitting(kohya_dataset.SAME.get(key, ""), read.theirs[key])
            kohya_dataset.take_one(read.names.get(key, key), key, value, read.into)
    if whole and "enable_bucket" not in read.theirs:
        read.into.take("enable_bucket", "pictures.buckets", False, "off there unless it is asked for")
    if (read.is_given("shuffle_caption") or read.number("caption_tag_dropout_rate")) and not read.number("keep_tokens"):
        read.take("keep_tokens", "captions.keep_tags", 0, "none is kept there unless it is asked for")
    if read.is_given("no_token_padding"):
        read.take("no_token_padding", "tuning.pad_tokens", False)
    if read.is_given("weighted_captions"):
        read.take("weighted_captions", "captions.weighted", True)
    if read.is_given("masked_loss") and not read.is_given("alpha_mask"):
        read.take("masked_loss", "objective.masked", True)
        read.take("masked_loss", "objective.unmasked_weight", 0.0)
    if read.is_given("cache_latents_to_disk"):
        read.take("cache_latents_to_disk", "pictures.cache_on_disk", True, "")


def steps_here(read: Reading, steps: float) -> int:
    """So many steps there as steps here, which see a batch of yours and one of the class: with class pictures every
    other picture of a batch there is of the class."""
    return ceil(steps / (2 if rates.has_class_pictures(read.into) else 1))


def _folders(read: Reading, disk: Disk, *, whole: bool) -> None:
    found: dict[str, list[tuple[str, str]]] = {"train_data_dir": [], "reg_data_dir": []}
    for key, some in found.items():
        folder = str(read.theirs.get(key) or "").strip()
        if not folder:
            continue
        some += [(f"{key}, {name}", path) for name, path in disk.repeated(folder)]
        if problem := disk.problem(folder):
            read.leave(key, f"{problem}: {folder}")
        elif not some:
            why = "it holds no folders that are named after repeats and class, such as '10_sks dog'"
            read.leave(key, why if not read.is_given("in_json") else read.table["in_json"].reason)
    key = "caption_extension" if read.is_given("caption_extension") else "caption_extention"
    suffix = str(read.theirs.get(key) or (".caption" if whole else ""))
    suffixes = (suffix,) if suffix.startswith(".") else kohya_dataset.BOTH_SUFFIXES
    kohya_dataset.from_folders(found["train_data_dir"], found["reg_data_dir"], disk.look, suffixes, read.into)
    if suffix in kohya_dataset.BOTH_SUFFIXES and key in read.theirs:
        read.leave(key, "a picture's caption is the .txt or the .caption beside it")
