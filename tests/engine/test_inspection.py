"""A folder of awkward files gets the right verdict on each, before anything runs."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from dreambooth.core import project
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.project import Folders
from dreambooth.core.settings import parse
from dreambooth.engine import contact_sheet, plan
from dreambooth.engine.data import inspection
from dreambooth.service import launcher
from dreambooth.ui.describe import of_runs

Write = Callable[[Path], None]
OK, WARNING, ERROR, LEFT_OUT, STRANGER = "ok", "warning", "error", "left out", "not a picture"


def photo(seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """A picture unlike every other seed's."""
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 11, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def saved(image: Image.Image, **options: Any) -> Write:
    return lambda path: image.save(path, **options)


def held(data: bytes) -> Write:
    return lambda path: path.write_bytes(data) and None


def cut(image: Image.Image, kind: str, share: float) -> Write:
    written = io.BytesIO()
    image.save(written, kind)
    return held(written.getvalue()[: int(len(written.getvalue()) * share)])


def heic(image: Image.Image) -> bytes:
    written = io.BytesIO()
    pillow_heif.from_pillow(image).save(written)
    return written.getvalue()


def turned(orientation: int) -> Write:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(photo(100 + orientation, (96, 64)), exif=exif)


def awkward_files() -> dict[str, tuple[str, str, Write]]:
    """{name: (verdict, a word of what is said, how to write it)}"""
    clear = photo(1).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    deep = Image.fromarray(np.asarray(photo(2).convert("L")).astype(np.uint16) * 257)
    floating = Image.fromarray(np.asarray(photo(3).convert("L")).astype(np.float32) / 255)
    frames = {"save_all": True, "append_images": [photo(5), photo(6)]}
    files: dict[str, tuple[str, str, Write]] = {
        "plain.png": (OK, "", saved(photo(10))),
        "plain.jpg": (OK, "", saved(photo(11))),
        "plain.jpeg": (OK, "", saved(photo(12), format="JPEG")),
        "LOUD.JPG": (OK, "", saved(photo(13), format="JPEG")),
        "plain.webp": (OK, "", saved(photo(14))),
        "plain.avif": (OK, "", saved(photo(15))),
        "phone.heic": (OK, "", held(heic(photo(38)))),
        "camera.HIF": (OK, "", held(heic(photo(39)))),
        "plain.bmp": (OK, "", saved(photo(16))),
        "plain.tiff": (OK, "", saved(photo(17))),
        "still.gif": (OK, "", saved(photo(18))),
        "progressive.jpg": (OK, "", saved(photo(19), progressive=True)),
        "grey.jpg": (OK, "", saved(photo(20).convert("L"))),
        "cmyk.jpg": (OK, "", saved(photo(21).convert("CMYK"))),
        "cmyk.tif": (OK, "", saved(photo(22).convert("CMYK"))),
        "lab.tif": (OK, "", saved(photo(23).convert("LAB"))),
        "palette.png": (OK, "", saved(photo(24).convert("P"))),
        "palette clear.png": (OK, "", saved(photo(25).convert("P"), transparency=0)),
        "black and white.png": (OK, "", saved(photo(26).convert("1"))),
        "clear.png": (OK, "", saved(clear)),
        "clear.webp": (OK, "", saved(photo(27).convert("RGBA"))),
        "grey clear.png": (OK, "", saved(photo(28).convert("LA"))),
        "deep.png": (OK, "", saved(deep)),
        "deep.tif": (OK, "", saved(Image.fromarray(np.asarray(deep)[::-1].copy()))),
        "floating.tif": (OK, "", saved(floating)),
        "with profile.jpg": (OK, "", saved(photo(29), icc_profile=b"no profile at all")),
        "really a jpeg.png": (OK, "", saved(photo(30), format="JPEG")),
        "really a png.jpg": (OK, "", saved(photo(31), format="PNG")),
        "日本語 ñ 🙂.png": (OK, "", saved(photo(32))),
        "two  spaces.and.dots.png": (OK, "", saved(photo(33))),
        str(Path("below/deeper/found.png")): (OK, "", saved(photo(34))),
        "quote ' \" & <b>.png": (OK, "", saved(photo(35))),
        "%2e%2e #1?.png": (OK, "", saved(photo(36))),
        "wide enough.png": (OK, "", saved(photo(37, (160, 100)))),
        "animated.gif": (WARNING, "first of its 3", saved(photo(4), **frames)),
        "animated.webp": (WARNING, "first of its 3", saved(photo(7), **frames)),
        "animated.png": (WARNING, "first of its 3", saved(photo(8), **frames)),
        "pages.tif": (WARNING, "first of its 3", saved(photo(9), **frames)),
        "tiny.png": (WARNING, "smaller than 64x64; it is enlarged 8.0 times", saved(photo(40, (8, 8)))),
        "one pixel.png": (WARNING, "enlarged 64.0 times", saved(Image.new("RGB", (1, 1), "purple"))),
        "flat.png": (WARNING, "enlarged 1.6 times", saved(photo(41, (100, 40)))),
        "strip.jpg": (WARNING, "keeps only 5%", saved(photo(42, (1300, 70)))),
        "tower.jpg": (WARNING, "keeps only 25%", saved(photo(43, (70, 280)))),
        "z twin.png": (WARNING, "looks the same as plain.jpg", saved(photo(11))),
        "z twin small.webp": (WARNING, "looks the same as plain.png", saved(photo(10).resize((91, 76)), quality=70)),
        "empty.png": (ERROR, "it is empty", held(b"")),
        "empty.jpg": (ERROR, "it is empty", held(b"")),
        "words.jpg": (ERROR, "it is no picture", held(b"I am not a picture.")),
        "page.png": (ERROR, "it is no picture", held(b"<!DOCTYPE html><html></html>")),
        "zeros.webp": (ERROR, "it is no picture", held(bytes(5000))),
        "cut.jpg": (ERROR, "cut short", cut(photo(50, (300, 300)), "JPEG", 0.6)),
        "cut.png": (ERROR, "", cut(photo(51, (300, 300)), "PNG", 0.6)),
        "cut.webp": (ERROR, "", cut(photo(52, (300, 300)), "WEBP", 0.5)),
        "cut.tif": (ERROR, "", cut(photo(53, (300, 300)), "TIFF", 0.5)),
        "cut.bmp": (ERROR, "cut short", cut(photo(54, (300, 300)), "BMP", 0.5)),
        "head only.jpg": (ERROR, "", cut(photo(55, (300, 300)), "JPEG", 0.1)),
        "no phone's.heic": (ERROR, "damaged or no picture", held(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")),
        "cut.heic": (ERROR, "cut short", held(heic(photo(56, (300, 300)))[:-100])),
        "plain.txt": (LEFT_OUT, "", held(b"a caption")),
        "list.json": (LEFT_OUT, "", held(b"{}")),
        "latents.npz": (LEFT_OUT, "", held(b"PK")),
        ".hidden.png": (LEFT_OUT, "", saved(photo(60))),
        ".thumbnails/small.png": (LEFT_OUT, "", saved(photo(61))),
        "__MACOSX/._plain.png": (LEFT_OUT, "", held(b"\0\5\x16\7")),
        "film.mp4": (STRANGER, "", held(b"\0\0\0\x18ftypmp42")),
        "IMG_1.CR2": (STRANGER, "", held(b"II*\0")),
        "paper.pdf": (STRANGER, "", held(b"%PDF-1.7")),
        "no suffix": (STRANGER, "", saved(photo(62), format="PNG")),
    }
    files.update({f"turned {n}.jpg": (OK, "", turned(n)) for n in range(1, 9)})
    if sys.platform == "win32":  # where such names cannot be
        files = {name: file for name, file in files.items() if not set(name) & set('<>:"?*')}
    return files


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    base = tmp_path_factory.mktemp("awkward")
    folder = base / "my pictures"
    for name, (_, _, write) in awkward_files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name)
    folders = Folders(base / "models")
    chosen = parse({"concepts.0.instance_data_dir": str(folder), "concepts.0.instance_prompt": "[filewords], sks"})
    job = launcher.new_errand(folders, project.create(folders, "x", MINIATURE), "check", chosen)
    return folder, plan.report(job)


def test_the_plan_has_each_text_that_a_caption_is_read_as_once(tmp_path: Path) -> None:
    saved(photo(1))(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(r"sks ||| tifa \(ff7\), smile")
    chosen = {"concepts.0.instance_data_dir": str(tmp_path), "concepts.0.instance_prompt": "[filewords]"}
    chosen |= {"captions.keep_marker": "|||", "captions.tag_dropout": 0.5, "captions.variants": 64}
    folders = Folders(tmp_path / "models")
    job = launcher.new_errand(folders, project.create(folders, "x", MINIATURE), "check", parse(chosen))
    (row,) = plan.report(job)["pictures"]
    assert sorted(row["texts"]) == ["sks", "sks, smile", "sks, tifa (ff7)", "sks, tifa (ff7), smile"]


def test_what_is_seldom_meant_is_said_beside_the_plan(tmp_path: Path) -> None:
    saved(photo(1))(tmp_path / "a.png")
    asked = {"instance_data_dir": str(tmp_path), "instance_prompt": "a {red|blue} sks star", "class_prompt": "a star"}
    chosen = parse({**{f"concepts.0.{key}": value for key, value in asked.items()}, "captions.variants": 1})
    folders = Folders(tmp_path / "models")
    job = launcher.new_errand(folders, project.create(folders, "x", MINIATURE), "check", chosen)
    found = plan.report(job)
    wheres = ["captions.variants", "concepts.0.num_class_images_per"]
    assert [one["where"] for one in found["warnings"] if one["what"] in found["remarks"]] == wheres
    assert found["problems"] == []
    text = contact_sheet.page("x", found, [b""])
    assert all(escape(sentence) in text and sentence in of_runs.plan(found) for sentence in found["remarks"])


def test_each_of_sixty_awkward_files_gets_the_right_verdict(checked: tuple[Path, dict[str, Any]]) -> None:
    folder, said = checked
    wanted = awkward_files()
    assert len(wanted) >= 60
    rows = {str(Path(row["path"]).relative_to(folder)): row for row in said["pictures"]}
    assert {str(Path(path).relative_to(folder)) for path in said["strangers"]} == {
        name for name, (verdict, _, _) in wanted.items() if verdict == STRANGER
    }
    assert set(rows) == {name for name, (verdict, _, _) in wanted.items() if verdict in (OK, WARNING, ERROR)}
    for name, row in rows.items():
        verdict, word, _ = wanted[name]
        told = "; ".join(row["warnings"]) + row.get("error", "")
        assert row["verdict"] == verdict, f"{name}: {told}"
        assert word in told, f"{name}: {told}"
        assert bool(told) == (verdict != OK), f"{name}: {told}"


def test_every_error_is_one_sentence_about_one_file(checked: tuple[Path, dict[str, Any]]) -> None:
    _, said = checked
    errors = [row for row in said["pictures"] if row["verdict"] == ERROR]
    assert said["problems"] == [row["error"] for row in errors]
    for row in errors:
        assert row["error"].startswith(f"{row['path']}: this picture cannot be read (")
        assert row["error"].endswith((".",)) and "\n" not in row["error"]


def test_sizes_are_those_of_the_upright_picture(checked: tuple[Path, dict[str, Any]]) -> None:
    _, said = checked
    sizes = {Path(row["path"]).name: (row.get("width"), row.get("height")) for row in said["pictures"]}
    assert [sizes[f"turned {n}.jpg"] for n in range(1, 9)] == [(96, 64)] * 4 + [(64, 96)] * 4


def test_the_caption_is_the_final_one(checked: tuple[Path, dict[str, Any]]) -> None:
    _, said = checked
    captions = {Path(row["path"]).name: row["prompt"] for row in said["pictures"]}
    assert captions["plain.png"] == "a caption, sks"
    assert captions["日本語 ñ 🙂.png"] == "日本語 ñ 🙂, sks"


@pytest.mark.parametrize("suffix", ["html", "png"])
def test_the_sheet_shows_every_picture(checked: tuple[Path, dict[str, Any]], tmp_path: Path, suffix: str) -> None:
    _, said = checked
    thumbnails = [inspection.inspect(Path(row["path"])).thumbnail for row in said["pictures"]]
    sheet = tmp_path / f"sheet.{suffix}"
    for _ in range(2):  # a sheet may be written anew
        contact_sheet.write(sheet, "x <y>", said, thumbnails)
    if suffix == "png":
        with Image.open(sheet) as image:
            rows = -(-len(thumbnails) // 6)
            assert image.width > 6 * 200 and image.height > rows * 200
            assert len(image.getcolors(1 << 24) or []) > 1000
        return
    text = sheet.read_text(encoding="utf-8")
    readable = [row for row in said["pictures"] if row["verdict"] != ERROR]
    assert text.count("data:image/jpeg;base64,") == len(readable)
    assert 'src="data:' in text and "http" not in text  # one file that asks for no other
    assert "x &lt;y&gt;" in text and "<b>.png" not in text
    for row in said["pictures"]:
        assert f"<b>{escape(row['name'])}</b>" in text
        assert f"<q>{escape(row['prompt'])}</q>" in text
        assert all(escape(remark) in text for remark in row["warnings"])
    assert all(escape(problem) in text for problem in said["problems"])


@pytest.mark.parametrize("name", ["mine.html", "mine.png"])
def test_the_sheet_overwrites_nothing_of_yours(checked: tuple[Path, dict[str, Any]], tmp_path: Path, name: str) -> None:
    _, said = checked
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(UserError, match="exists already"):
        contact_sheet.write(tmp_path / name, "x", said, [b""] * len(said["pictures"]))
    assert (tmp_path / name).read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_alike_is_not_the_same(tmp_path: Path) -> None:
    """Plain pictures of several colours, and the same pattern in other colours, are no twins."""
    for colour in ("red", "blue", "white", "black"):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{colour}.png")
    pattern = photo(1)
    pattern.save(tmp_path / "pattern.png")
    Image.merge("RGB", pattern.split()[::-1]).save(tmp_path / "pattern in other colours.png")
    pattern.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "pattern from the other side.png")
    assert inspection.twins([inspection.inspect(path) for path in sorted(tmp_path.iterdir())]) == {}
