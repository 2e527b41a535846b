"""The words that a picture is trained on: its caption, the prompt around it, and what varies from step to step.

A text may mean several: a caption file with several lines, {a|b|c}, and tags that are shuffled or left out. `variants`
lists what a picture can be trained on, a bounded number, so that each text is encoded once; `pick` chooses one of
them. Both follow from the seed and the position alone, so a resumed run reads what it would have read.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.core import emphasis, picture_names, tags
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic, paths

if TYPE_CHECKING:
    from dreambooth.core.settings.dataset import Captions, Concept

FILEWORDS = "[filewords]"
# What is wrong with it where no picture is meant.
NO_CAPTION = f"{FILEWORDS} stands for a picture's caption, and there is no picture here; write the words themselves."
# The suffixes of picture files.
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".hif")
BESIDE = (".txt", ".caption")  # caption files, in the order of their precedence
_MOST_WRITTEN = 20_000  # characters of a caption

_CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}")  # the innermost {a|b}
_DRAWS_PER_VARIANT = 20


def beside(picture: Path) -> Path | None:
    """The caption file of a picture; None if it has none."""
    return next(filter(paths.is_file, files_of(picture)), None)


def files_of(picture: Path) -> list[Path]:
    """Where a picture's caption may be, in the order of their precedence."""
    return [picture.with_suffix(suffix) for suffix in BESIDE]


def write(picture: Path, text: str) -> None:
    """Writes a picture's caption file. Without a word it is removed, and the file's name is the caption again.

    Raises UserError if it cannot be written.
    """
    file = beside(picture) or files_of(picture)[0]
    if len(text) > _MOST_WRITTEN:
        raise UserError(f"{file.name}: a caption has at most {_MOST_WRITTEN:,} characters.")
    try:
        if text.strip():
            atomic.write_text(file, text.strip() + "\n")
        else:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{file}: the caption cannot be written ({error.strerror}).") from None


def file_words(picture: Path) -> str:
    """What [filewords] stands for: the caption file's text, each of its lines one caption, or else the file's name.

    Raises UserError for a caption file that is no UTF-8 text.
    """
    file = beside(picture)
    if file is None:
        return picture_names.words(picture.stem)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{file}: the caption cannot be read as UTF-8 text.") from None
    return "\n".join(_squeeze(line) for line in text.splitlines() if line.strip())


def says_nothing(concept: Concept, picture: Path) -> bool:
    """Whether [filewords] stands for nothing at a picture, as it has no caption file and a device chose its name."""
    return FILEWORDS in concept.instance_prompt and beside(picture) is None and not picture_names.words(picture.stem)


def instance_words(concept: Concept, picture: Path) -> str:
    """The text of one of the concept's pictures, a line for each of its captions.

    Raises UserError for a caption that cannot be read, and for a picture that nothing is said about.
    """
    captions = file_words(picture).split("\n") if FILEWORDS in concept.instance_prompt else [""]
    texts = [_instance(concept.instance_prompt.replace(FILEWORDS, caption), concept) for caption in captions]
    if concept.instance_prompt.strip() and not any(texts) and beside(picture) is None:
        raise UserError(
            f"{picture}: nothing says what it shows; write it into {picture.stem}.txt beside it, or into its name."
        )
    return "\n".join(texts)


def class_words(concept: Concept, caption: str) -> str:
    """The concept's class prompt; [filewords] is a picture's caption, and the class takes the subject's place in it."""
    subject, kind = concept.instance_token.strip(), concept.class_token.strip()
    text = concept.class_prompt.replace(FILEWORDS, caption)
    if subject:
        text = _without(subject, text, kind)
    if kind and not _find(kind, text):
        text = f"{kind}, {text}"
    return _squeeze(text)


def means_several(text: str) -> bool:
    """Whether it means several texts by itself, by {a|b} or by its lines."""
    return bool("\n" in text or _CHOICE.search(text))


def variants(text: str, options: Captions, seed: int) -> tuple[str, ...]:
    """The texts that `text` means, at most `options.variants` of them.

    They differ, except where tags are left out by chance: then so many are drawn, and the likelier stand there more
    often.
    """
    if not _varies(text, options):
        return (_draw(text, options, random.Random(0)),)
    if options.tag_dropout:
        return tuple(_draw(text, options, _random(f"{seed} {number} {text}")) for number in range(options.variants))
    found: dict[str, None] = {}
    for number in range(options.variants * _DRAWS_PER_VARIANT):
        found.setdefault(_draw(text, options, _random(f"{seed} {number} {text}")))
        if len(found) == options.variants:
            break
    return tuple(found)


def steady(options: Captions) -> Captions:
    """The same without what changes from step to step: all tags, each in its place."""
    return replace(options, shuffle_tags=False, tag_dropout=0.0)


def of_class(options: Captions) -> Captions:
    """How the class's pictures are read: as yours, with nothing around it and nothing that changes."""
    return replace(steady(options), prefix="", suffix="")


def _random(words: str) -> random.Random:
    """As Random(words), also for words that are no Unicode."""
    return random.Random(words.encode(errors="surrogatepass"))


def pick(count: int, seed: int, place: int | str) -> int:
    """Which of `count` variants is read at `place`, the number of pictures that were seen before or a file's name."""
    return _random(f"variant {seed} {place}").randrange(count) if count > 1 else 0


def is_dropped(share: float, seed: int, place: int) -> bool:
    """Whether the picture at `place` is read without a caption; so is this share of all places."""
    return bool(share) and random.Random(f"dropout {seed} {place}").random() < share


def _instance(text: str, concept: Concept) -> str:
    """The text with the instance token in it: before the class's word where there is one, else in front."""
    subject, kind = concept.instance_token.strip(), concept.class_token.strip()
    if subject and not _find(subject, text):
        named = f"{subject} {kind}" if kind and not _find(kind, subject) else subject
        place = _find(kind, text) if kind else None
        text = f"{text[: place.start()]}{named}{text[place.end() :]}" if place else f"{named}, {text}"
    return _squeeze(text)


def _without(subject: str, text: str, kind: str) -> str:
    """The text without the subject; the class's word stands for it, unless it stands beside it already."""
    while place := _find(subject, text):
        before, after = text[: place.start()].rstrip(), text[place.end() :].lstrip()
        named = kind and (_find(kind, after, at_start=True) or _find(kind, before, at_end=True))
        text = f"{before} {'' if named else kind} {after}"
        if kind and _find(subject, kind):
            break
    return text


def _find(word: str, text: str, *, at_start: bool = False, at_end: bool = False) -> re.Match[str] | None:
    pattern = rf"(?<!\w){re.escape(word)}(?!\w)"
    return re.search(f"{'^' if at_start else ''}{pattern}{'$' if at_end else ''}", text, re.IGNORECASE)


def _varies(text: str, options: Captions) -> bool:
    of_tags = tags.vary(options) and ("," in text or options.tag_dropout > 0)
    return options.variants > 1 and (of_tags or means_several(text))


def _draw(text: str, options: Captions, source: random.Random) -> str:
    """One of the texts that `text` means."""
    line = source.choice(text.split("\n"))
    while choice := _CHOICE.search(line):
        line = line[: choice.start()] + source.choice(choice[1].split("|")) + line[choice.end() :]
    line = tags.arranged(line, options, source).strip()
    whole = _squeeze(", ".join(part for part in (options.prefix.strip(), line, options.suffix.strip()) if part))
    return whole if options.weighted else emphasis.bare(whole, weighted=False)


def _squeeze(text: str) -> str:
    """Single spaces, and no comma that parts nothing."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\s+,", ",", text)
    return re.sub(r",(\s*,)+", ",", text).strip(" ,")
