"""Any picture file that a person has becomes upright RGB; what cannot be read is named with the mend."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms, ImageFile

from dreambooth.core.errors import UserError
from dreambooth.engine.data import decoding
from dreambooth.engine.data.decoding import decode, decode_alpha, measure
from dreambooth.service import thumbnails


def test_a_photo_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    photo = Image.new("RGB", (64, 32), "white")
    photo.paste("black", (0, 0, 64, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn right
    photo.save(tmp_path / "x.jpg", exif=exif)
    turned = np.asarray(decode(tmp_path / "x.jpg").convert("L"))
    assert turned.shape == (64, 32)
    assert turned[:, 20:].mean() < 20 < 230 < turned[:, :12].mean()
    assert measure(tmp_path / "x.jpg") == (32, 64, 1)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "avif", "heic"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_every_kind_of_file_is_measured_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    """A TIFF's sides Pillow swaps by itself, and libheif a HEIC's."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path, picture = tmp_path / f"x.{suffix}", Image.new("RGB", (64, 32), "red")
    write = pillow_heif.from_pillow(picture).save if suffix == "heic" else picture.save
    write(path, exif=exif.tobytes())
    assert (
        measure(path)[:2] == decode(path).size == thumbnails.size(path) == ((32, 64) if orientation == 6 else (64, 32))
    )


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_a_png_is_measured_without_its_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: bool, turned: bool
) -> None:
    """Unless something stands behind them that may say how it is turned."""
    exif, loaded = Image.Exif(), list[str]()
    exif[0x0112] = 6
    path = tmp_path / "x.png"
    Image.new("RGB", (64, 32), "red").save(path, **({"exif": exif} if turned else {}))
    if behind:
        path.write_bytes(last_before_end(path.read_bytes(), b"eXIf" if turned else b"tEXt"))
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: (loaded.append(image.filename), load(image))[1])
    wanted = (32, 64) if turned else (64, 32)
    assert measure(path) == (*wanted, 1)
    assert bool(loaded) == behind
    assert decode(path).size == wanted


def last_before_end(png: bytes, kind: bytes) -> bytes:
    """A PNG with a chunk of that kind behind its pixels, the one that it has, or else a new one."""
    place = png.find(kind) - 4
    if place < 0:
        body = kind + b"Comment\0none"
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    else:
        length = 12 + struct.unpack(">I", png[place : place + 4])[0]
        chunk, png = png[place : place + length], png[:place] + png[place + length :]
    return png[:-12] + chunk + png[-12:]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK", "I;16", "I", "F", "LAB", "YCbCr", "RGB"])
def test_white_of_every_kind_is_white(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((32, 32), 65535, dtype=np.uint16))
    elif mode in ("I", "F"):
        image = Image.fromarray(np.full((32, 32), 65535 if mode == "I" else 1, dtype={"I": "i4", "F": "f4"}[mode]))
    elif mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(
            Image.new("RGB", (32, 32), "white"), ImageCms.createProfile("sRGB"), lab, outputMode="LAB"
        )
    else:
        image = Image.new("RGB", (32, 32), "white").convert(mode)
    path = tmp_path / {"CMYK": "x.jpg", "YCbCr": "x.jpg", "F": "x.tif", "I": "x.tif", "LAB": "x.tif"}.get(mode, "x.png")
    image.save(path)
    loaded = decode(path)
    assert loaded.mode == "RGB"
    assert np.asarray(loaded).min() > 240


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "avif", "bmp", "gif", "tif", "heic"])
def test_every_kind_of_file_keeps_its_colours(tmp_path: Path, suffix: str) -> None:
    picture = Image.new("RGB", (48, 48), (200, 60, 40))
    write = pillow_heif.from_pillow(picture).save if suffix == "heic" else picture.save
    write(tmp_path / f"x.{suffix}")
    assert np.asarray(decode(tmp_path / f"x.{suffix}")).reshape(-1, 3).mean(0) == pytest.approx([200, 60, 40], abs=6)


def test_a_picture_that_is_a_program_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is PostScript Pillow hands to Ghostscript, whatever its name."""
    path = tmp_path / "cat.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n")
    with Image.open(path) as picture:
        assert picture.format == "EPS", "otherwise this would prove nothing"
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    for read in (decode, measure, decode_alpha, thumbnails.size, lambda path: thumbnails.thumbnail(path, 64)):
        with pytest.raises(UserError, match="it is no picture"):
            read(path)


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(tmp_path / "x.png")
    assert np.asarray(decode(tmp_path / "x.png")).min() == 255


def swapped_srgb() -> bytes:
    """sRGB's profile with red and blue changed over."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"tXYZ").replace(b"bXYZ", b"rXYZ").replace(b"tXYZ", b"bXYZ")
    return swapped.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


def linear_grey() -> bytes:
    """A profile of grey without gamma."""
    white = struct.pack(">4s4x3i", b"XYZ ", 63190, 65536, 54061)
    tags = {b"wtpt": white, b"kTRC": struct.pack(">4s4xI", b"curv", 0), b"desc": b"desc" + bytes(8) + bytes(80)}
    table, content, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, tag in tags.items():
        table += struct.pack(">4sII", name, start + len(content), len(tag))
        content += tag
    head = struct.pack(
        ">I4sI4s4s4s12x4s", start + len(content), b"lcms", 0x02100000, b"mntr", b"GRAY", b"XYZ ", b"acsp"
    )
    head += bytes(28) + white[8:]
    return head.ljust(128, b"\0") + table + content


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "P with transparency"])
def test_colours_of_another_space_become_srgb(tmp_path: Path, mode: str) -> None:
    """Read without the profile, the picture would be blue."""
    picture = Image.new("RGB", (32, 32), (40, 60, 200)).convert(mode.split()[0], palette=Image.Palette.ADAPTIVE)
    more = {"transparency": 1} if mode.endswith("transparency") else {}
    picture.save(tmp_path / "x.png", icc_profile=swapped_srgb(), **more)
    with Image.open(tmp_path / "x.png") as written:
        assert (written.mode, "transparency" in written.info) == (picture.mode, bool(more))
    assert np.asarray(decode(tmp_path / "x.png")).reshape(-1, 3).mean(0) == pytest.approx([200, 60, 40], abs=4)


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_grey_of_another_space_becomes_srgb(tmp_path: Path, mode: str) -> None:
    """Half the light is 188 in sRGB."""
    Image.new("L", (32, 32), 128).convert(mode).save(tmp_path / "x.png", icc_profile=linear_grey())
    assert np.asarray(decode(tmp_path / "x.png")).reshape(-1, 3).mean(0) == pytest.approx([188] * 3, abs=3)


def test_a_profile_is_srgb_by_what_it_does_and_not_by_its_name(tmp_path: Path) -> None:
    """GIMP calls its profile without gamma linear sRGB. 55 of 255 is there 128 in sRGB."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    curve = profile.index(b"para") + 12  # the parameters of its gamma: g, a, b, c, d
    profile[curve : curve + 20] = struct.pack(">5i", 65536, 65536, 0, 65536, 0)
    assert "sRGB" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(bytes(profile))))
    Image.new("RGB", (32, 32), (55, 55, 55)).save(tmp_path / "x.png", icc_profile=bytes(profile))
    assert decode(tmp_path / "x.png").getpixel((0, 0)) == (128, 128, 128)


def test_what_shines_through_is_mixed_after_the_colours_are_srgb(tmp_path: Path) -> None:
    Image.new("RGBA", (32, 32), (0, 0, 255, 128)).save(tmp_path / "x.png", icc_profile=swapped_srgb())
    on_white, on_black = (np.asarray(decode(tmp_path / "x.png", ground=ground))[0, 0] for ground in (255, 0))
    assert on_white == pytest.approx([255, 127, 127], abs=4)
    assert on_black == pytest.approx([128, 0, 0], abs=4)


def test_the_first_picture_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(decode(tmp_path / "x.gif"))[0, 0].tolist() == pytest.approx([255, 0, 0], abs=3)


def test_a_quick_look_is_smaller_but_never_below_what_was_asked(tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((1600, 900)).save(tmp_path / "x.jpg")
    quick = decode(tmp_path / "x.jpg", smallest=200)
    assert 200 <= quick.height < 900
    whole = decode(tmp_path / "x.jpg").resize(quick.size)
    assert np.abs(np.asarray(quick, dtype=int) - np.asarray(whole, dtype=int)).mean() < 2


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("cut.png", b"\x89PNG\r\n\x1a\n half", "it is no picture"),
        ("empty.jpg", b"", "it is empty"),
        ("page.jpg", b"<html>not found</html>", "it is no picture"),
        ("phone.heic", b"\0\0\0\x18ftypheic", "it is damaged or no picture"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        decode(tmp_path / name)
    said = caught.value.problems[0]
    assert said.startswith(f"{tmp_path / name}: this picture cannot be read (")
    assert reason in said


def test_a_phones_picture_is_known_by_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some send them on as .jpg. Another engine's Python than ours may lack the package."""
    pillow_heif.from_pillow(Image.new("RGB", (64, 32), "red")).save(tmp_path / "IMG_1.heic")
    path = (tmp_path / "IMG_1.heic").rename(tmp_path / "IMG_1.jpg")
    assert decode(path).size == (64, 32)
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF")
    decoding._reads_heic.cache_clear()
    with pytest.raises(UserError, match=r"IMG_1\.jpg: .*the engine's Python has no pi-heif"):
        decode(path)
    decoding._reads_heic.cache_clear()


def test_a_picture_that_ends_early_is_found_by_a_quick_look_too(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (600, 600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.jpg")
    whole = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(whole[: len(whole) * 9 // 10])
    for smallest in (0, 64):
        with pytest.raises(UserError, match=r"x\.jpg.*cut short"):
            decode(tmp_path / "x.jpg", smallest)


def test_a_picture_too_large_for_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (400, 400)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match=r"million pixels.*make it smaller"):
        decode(tmp_path / "x.png")
