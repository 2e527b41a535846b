"""A concept's pictures as they lie in its folder: each with the part that training sees and the words that it is
trained on, which can be changed in place.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from urllib.parse import quote, urlencode

from dreambooth.core import captions, picture_files, picture_names, settings, validation
from dreambooth.core.errors import UserError
from dreambooth.core.models import captioner_folder
from dreambooth.core.project import Folders, Project, open_project
from dreambooth.core.settings import Settings
from dreambooth.service import launcher, pictures, thumbnails, uploads
from dreambooth.ui.page.crop_view import Crops
from dreambooth.ui.page.fragments import root, sentence_list, source
from dreambooth.ui.page.quality_view import HINT
from dreambooth.ui.page.short_job_view import newest_errand

SHOWN = 48  # pictures at first, and with each "Show more"
_THUMBNAIL_SIDE = 256


def concept_view(folders: Folders, model: str, row: int, shown: int, captioners: tuple[str, ...] = ()) -> str:
    project = open_project(folders, model)
    own = settings.parse(project.settings())
    if not 0 <= row < len(own.concepts):  # it was removed just now
        return root("none", [("pictures", "")])
    if not own.concepts[row].instance_data_dir.strip():
        words = "The pictures are shown here: name their folder, or drop them."
        return root("none", [("pictures", f'<p class="db-quiet">{words}</p>')])
    try:
        folder = pictures.concept_folder(project, row, "instance")
        listed = pictures.names(folder)
        cropped = Crops.of(project, own)
    except UserError as error:
        return root("none", [("pictures", sentence_list(error.problems))])
    if not listed:
        return root("none", [("pictures", f'<p class="db-quiet">No pictures are in {escape(str(folder))} yet.</p>')])
    out = picture_files.held_out(own.concepts[row], [folder / name for name in listed], own.general.seed)
    tiles = "".join(
        _tile(project, own, row, folder, name, cropped, is_held_out=folder / name in out) for name in listed[:shown]
    )
    more = len(listed) - shown
    button = f'<button type="button" class="db-more" data-db-more="{SHOWN}">Show more ({more:,})</button>'
    bare = any(captions.beside(folder / name) is None for name in listed[:shown])
    describers = _describers(project, row, folder, captioners) if bare else ""
    tail = f"{button if more > 0 else ''}{_hint(own, len(listed))}{describers}"
    return root("some", [("pictures", f'{_head(own, row, len(listed))}<div class="db-tiles">{tiles}</div>{tail}')])


def _head(own: Settings, row: int, count: int) -> str:
    return f"<h4>{count:,} picture{'' if count == 1 else 's'} <small>{_about_words(own, row)}</small></h4>"


def _hint(own: Settings, count: int) -> str:
    """That one of the pictures could be spared to tell when a run is best."""
    could_tell = validation.could_tell([concept.held_out for concept in own.concepts], [count])
    return f'<p class="db-quiet">{HINT}</p>' if could_tell and not own.imagic.enabled else ""


def _describers(project: Project, row: int, folder: Path, captioners: tuple[str, ...]) -> str:
    """A button for each of the WebUI's models that can say what pictures show, or else one for the engine's; none while
    they are described."""
    job = newest_errand(project, "caption")
    if job and launcher.is_under_way(job):
        return ""
    if captioners:
        buttons = " ".join(_describer(project, row, folder, name, name) for name in captioners)
        return f'<p class="db-quiet">Pictures without a caption: {buttons}</p>'
    button = _describer(project, row, folder, "BLIP", captioner_folder.BLIP)
    note = "The first time its model is fetched from the Hugging Face hub (1 GB)."
    return f'<p class="db-quiet">Pictures without a caption: {button} <small>{note}</small></p>'


def _describer(project: Project, row: int, folder: Path, label: str, captioner: str) -> str:
    address = f"dreambooth/models/{quote(project.name)}/errands"
    body = json.dumps({"kind": "caption", "with": captioner, "concept": row, "folder": str(folder)})
    return (
        f'<button type="button" class="db-more" data-db-describe="{escape(label)}" data-db-send="{escape(address)}" '
        f'data-db-body="{escape(body)}">Describe with {escape(label)}</button>'
    )


def _about_words(own: Settings, row: int) -> str:
    if captions.FILEWORDS in own.concepts[row].instance_prompt:
        return "the caption under each can be changed"
    return "all are trained on the Instance Prompt; with [filewords] in it, each on a caption of its own"


def _tile(
    project: Project,
    own: Settings,
    row: int,
    folder: Path,
    name: str,
    cropped: Crops,
    *,
    is_held_out: bool,
) -> str:
    path = folder / name
    try:
        _check_name(name)
        size = thumbnails.size(path)
    except UserError as error:
        return f'<figure class="db-tile">{_problem(error, path, name)}{_away(project, row, folder, name)}</figure>'
    concept = f"dreambooth/models/{quote(project.name)}/concepts/{row}"
    address = f"{concept}/picture?" + urlencode({"file": name, "changed": path.stat().st_mtime_ns})
    crop = cropped.framed(folder, name, size, concept, address)
    frame = (
        f'<div class="db-shown"><a class="db-frame" {source(address)} target="_blank" '
        f'style="aspect-ratio:{size[0]}/{size[1]}"><img loading="lazy" alt="{escape(name)}" title="{escape(name)}" '
        f"{source(address, f'&side={_THUMBNAIL_SIDE}')}>{crop.frame}</a>{crop.button}</div>"
    )
    mark = '<b class="db-held-out">held out</b>' if is_held_out else ""
    mark += _away(project, row, folder, name)
    words = sentence_list(crop.problems) + _words(project, own, row, folder, name)
    return f'<figure class="db-tile">{frame}{mark}{words}</figure>'


def _check_name(name: str) -> None:
    """Raises UserError for a picture that no address can name."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{name}: it is trained, but its name is not Unicode, so it cannot be shown; rename it to see it."
        ) from None


def _away(project: Project, row: int, folder: Path, name: str) -> str:
    """A button that takes a dropped picture away."""
    if not uploads.are_in(project, folder):
        return ""
    address = f"dreambooth/models/{quote(project.name)}/concepts/{row}/remove"
    words, body = f"Move {escape(name)} to the trash", {"file": name, "folder": str(folder)}
    return (
        f'<button type="button" class="db-away" title="{words}" aria-label="{words}" '
        f'data-db-send="{escape(address)}" data-db-body="{escape(json.dumps(body))}">×</button>'
    )


def _problem(error: UserError, path: Path, name: str) -> str:
    """What is wrong with a picture; a tile has no room for its folder, which the page names above."""
    return sentence_list([problem.replace(str(path), name) for problem in error.problems])


def _words(project: Project, own: Settings, row: int, folder: Path, name: str) -> str:
    concept, path = own.concepts[row], folder / name
    try:
        words = captions.instance_words(concept, path)
        texts = list(dict.fromkeys(captions.variants(words, own.captions, own.general.seed)))
    except UserError as error:
        texts, problem = [""], _problem(error, path, name)
    else:
        problem = ""
    if captions.FILEWORDS not in concept.instance_prompt:
        return problem or f"<figcaption{_all_of(texts)}>{escape(texts[0])}</figcaption>"
    own_words = pictures.caption(path)
    shown = picture_names.words(path.stem) if own_words is None else own_words.strip()
    address = f"dreambooth/models/{quote(project.name)}/concepts/{row}/caption"
    field = (
        f'<textarea rows="2" aria-label="Caption of {escape(name)}" data-db-caption="{escape(name)}" '
        f'data-db-address="{escape(address)}" data-db-folder="{escape(str(folder))}">{escape(shown)}</textarea>'
    )
    note = "" if texts == [shown] else f"<figcaption{_all_of(texts)}>trained as: {escape(texts[0])}</figcaption>"
    return field + (problem or note)


def _all_of(texts: list[str]) -> str:
    """Every text of a picture that has several, for whoever points at the first."""
    every = escape("\n".join(texts))
    return f' title="{every}"' if len(texts) > 1 else ""
