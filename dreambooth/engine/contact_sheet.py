"""The plan of a run on one sheet, for a browser or as a picture: every picture with its crop, caption and verdict."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.core.formatting import duration, memory, size
from dreambooth.core.picture_opening import open_picture

MARK = "dreambooth contact sheet"  # in every sheet, so that nothing else is ever overwritten
MOST_ON_A_PICTURE = 400
_TEMPLATE = Path(__file__).with_name("contact_sheet.html")
_CELL, _GAP, _LINE, _COLUMNS = 200, 14, 16, 6  # pixels, and how many pictures a row
_INK, _SOFT, _AMBER, _RED = "#1f2328", "#6a7078", "#8a5a00", "#a3232b"

Report = dict[str, Any]


def write(path: Path, name: str, report: Report, thumbnails: list[bytes]) -> None:
    """Writes the sheet as .html or .png, in one piece. `thumbnails` are JPEGs, empty where a picture cannot be read.

    Raises UserError if the file exists and is no contact sheet, or cannot be written.
    """
    try:
        if path.exists() and MARK.encode() not in path.read_bytes()[:2000]:
            raise UserError(f"--sheet: {path} exists already and is no contact sheet; name another file.")
        with atomic.staged(path) as staged:
            if path.suffix.lower() == ".html":
                staged.write_text(page(name, report, thumbnails), encoding="utf-8", errors="backslashreplace")
            else:
                about = PngInfo()
                about.add_text("Software", MARK)
                picture(name, report, thumbnails).save(staged, format="PNG", pnginfo=about)
    except OSError as error:
        raise UserError(f"--sheet: {path} cannot be written ({error.strerror}).") from None


def facts(report: Report) -> list[tuple[str, str, str]]:
    """What a person wants to know before starting: (what, how much, a word more)."""
    count, steps = len(report["pictures"]), f"{report['steps']:,}"
    images = (
        f"{report['images_each_epoch']:,} pictures x {report['epochs']:g} epochs = {report['images']:,} pictures seen"
    )
    time = f"about {duration(report['seconds'])}" if report["seconds"] else "known after a first run"
    needed = report["memory"]
    shapes = ", ".join(f"{b['pictures']} at {b['width']}x{b['height']}" for b in report["buckets"])
    rows = [
        ("Pictures", f"{count:,}", shapes),
        ("Steps", steps, images),
        ("Time", time, "for the training steps, at the pace of the last run like it" if report["seconds"] else ""),
    ]
    if needed:
        rows.append(("Memory of a GPU", f"about {memory(needed['total'])}", "an estimate, not measured"))
        saves = f"{report['saves']} x {size(report['save_bytes'])}" if report["saves"] > 1 else "the result"
        rows.append(("Disk", size(report["disk_bytes"]), f"{saves}, and {size(report['state_bytes'])} a state"))
    if missing := sum(one["missing"] for one in report["class_pictures"]):
        existing = sum(one["there"] for one in report["class_pictures"])
        rows.append(("Class pictures", f"{missing:,} to be made", f"{existing:,} are there"))
    if out := sum(one["held_out"] for one in report["pictures"]):
        rows.append(("Held out", f"{out:,}", "not learned, only looked at, to tell when the run is best"))
    if mirrored := report["mirrored"]:
        rows.append(("Mirror images", f"{mirrored:,}", "only looked at, to tell when the run is best"))
    if could := report["could_measure"]:
        what = "one that is only looked at" if "held_out" in could else "mirror images, only looked at,"
        rows.append(("Held out", "none", f"{what} would tell when the run is best"))
    if kept := report["kept_prompts"]:
        rows.append(("Class", "kept by prediction", "; ".join(kept)))
    return [*rows, ("Result goes to", Path(report["output_folder"]).name, report["output_folder"])]


def page(name: str, report: Report, thumbnails: list[bytes]) -> str:
    """The sheet as one HTML file that needs no other."""
    rows = [
        f"<div><dt>{escape(what)}</dt><dd>{escape(much)}<small>{escape(more)}</small></dd></div>"
        for what, much, more in facts(report)
    ]
    strangers = [f"Not a picture: {path}" for path in report["strangers"]]
    notes = _notes("error", report["problems"]) + _notes("warning", [*report["remarks"], *strangers])
    concepts = []
    for number in sorted({one["concept"] for one in report["pictures"]}):
        own = [(one, t) for one, t in zip(report["pictures"], thumbnails) if one["concept"] == number]
        cards = "\n".join(_card(one, thumbnail) for one, thumbnail in own)
        concepts.append(
            f"<h2>Concept {number + 1}: {len(own)} pictures</h2><p>{escape(own[0][0]['folder'])}</p>"
            f'<div class="sheet">{cards}</div>'
        )
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=escape(name),
        facts="".join(rows),
        notes=notes,
        concepts="\n".join(concepts),
        footer=escape(f"Pictures are trained at about {report['size']}x{report['size']} pixels."),
    )


def picture(name: str, report: Report, thumbnails: list[bytes]) -> Image.Image:
    """The sheet as one picture. Raises UserError for more pictures than fit."""
    if len(thumbnails) > MOST_ON_A_PICTURE:
        raise UserError(f"--sheet: a .png shows at most {MOST_ON_A_PICTURE} pictures; name a .html file instead.")
    head = [f"{what}: {much}{f'  ({more})' if more else ''}" for what, much, more in facts(report)]
    head += [*report["problems"], *report["remarks"], *(f"Not a picture: {path}" for path in report["strangers"])]
    columns = min(_COLUMNS, len(thumbnails))
    width = max(_GAP + columns * (_CELL + _GAP), 900)
    high = _CELL + 6 * _LINE + _GAP
    top = 50 + len(head) * _LINE + _GAP
    sheet = Image.new("RGB", (width, top + -(-len(thumbnails) // columns) * high), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    pen.text((_GAP, 14), f"{name}: what training will see", _INK, ImageFont.load_default(20))
    for number, line in enumerate(head):
        pen.text((_GAP, 50 + number * _LINE), _fitted(line, width - 2 * _GAP, font), _INK, font)
    for number, (one, thumbnail) in enumerate(zip(report["pictures"], thumbnails)):
        left, upper = _GAP + number % columns * (_CELL + _GAP), top + number // columns * high
        if thumbnail:
            small = _cropped(one, thumbnail)
            sheet.paste(small, (left + (_CELL - small.width) // 2, upper + (_CELL - small.height) // 2))
        for row, (text, colour) in enumerate(_lines(one, font)):
            pen.text((left, upper + _CELL + 4 + row * _LINE), text, colour, font)
    return sheet


def _notes(kind: str, sentences: list[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="notes {kind}">{items}</ul>' if items else ""


def _card(one: Report, thumbnail: bytes) -> str:
    remarks = [one["error"].removeprefix(f"{one['path']}: ")] if one["verdict"] == "error" else one["warnings"]
    shown = "<p>cannot be read</p>"
    detail = ""
    if thumbnail:
        data = base64.b64encode(thumbnail).decode()
        boxes = "".join(_outline(one, box, 'class="other" ' if n else "") for n, box in enumerate(one["crops"]))
        shown = f'<div class="frame"><img src="data:image/jpeg;base64,{data}" alt="">{boxes}</div>'
        detail = f"<span>{_detail(one)}</span>"
    words = "".join(f"<em>{escape(remark)}</em>" for remark in remarks)
    return (
        f'<figure class="{one["verdict"]}"><div class="picture">{shown}</div><figcaption><b>{escape(one["name"])}</b>'
        f"{detail}<q>{escape(one['prompt'])}</q>{_texts(one)}{words}</figcaption></figure>"
    )


def _texts(one: Report) -> str:
    """The other texts that a picture is read with, folded away."""
    items = "".join(f"<li>{escape(text)}</li>" for text in one["texts"][1:])
    return (
        f"<details><summary>and {len(one['texts']) - 1} more texts</summary><ul>{items}</ul></details>" if items else ""
    )


def _outline(one: Report, box: list[float], kind: str) -> str:
    left, top, right, bottom = (
        100 * side / whole for side, whole in zip(box, (one["width"], one["height"], one["width"], one["height"]))
    )
    return f'<i {kind}style="left:{left:.2f}%;top:{top:.2f}%;width:{right - left:.2f}%;height:{bottom - top:.2f}%"></i>'


def _detail(one: Report) -> str:
    variants = f", {len(one['crops'])} variants" if len(one["crops"]) > 1 else ""
    by_hand = ", crop by hand" if one["chosen"] else ""
    return f"{one['width']}x{one['height']} → {one['bucket'][0]}x{one['bucket'][1]}{variants}{by_hand}"


def _cropped(one: Report, thumbnail: bytes) -> Image.Image:
    """The thumbnail with what the crop leaves out darkened."""
    small = open_picture(io.BytesIO(thumbnail)).convert("RGB")
    small.thumbnail((_CELL, _CELL))
    scale = small.width / one["width"], small.height / one["height"]
    box = [round(side * scale[n % 2]) for n, side in enumerate(one["crops"][0])]
    box = [box[0], box[1], max(box[2], box[0] + 1), max(box[3], box[1] + 1)]
    dark = small.point(lambda value: value // 3)
    dark.paste(small.crop(box), (box[0], box[1]))
    ImageDraw.Draw(dark).rectangle([box[0], box[1], box[2] - 1, box[3] - 1], outline="white")
    return dark


def _lines(one: Report, font: Any) -> Iterator[tuple[str, str]]:
    """What is written under a picture: at most six lines, each with its colour."""
    yield _fitted(one["name"], _CELL, font), _INK
    if one["verdict"] == "error":
        yield "cannot be read", _RED
        return
    yield _detail(one).replace("→", "->"), _SOFT
    words = _fitted(one["prompt"], 2 * _CELL - 20, font)
    first = _fitted(words, _CELL, font, "")
    yield first, _INK
    yield words[len(first) :].strip(), _INK
    for remark in one["warnings"][:2]:
        yield _fitted(remark, _CELL, font), _AMBER


def _fitted(text: str, width: int, font: Any, end: str = "…") -> str:
    """As much of a text as fits, in pixels."""
    text = text.encode("utf-8", "replace").decode().replace("\n", " ")
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + end) > width:
        text = text[:-1]
    return text + end
