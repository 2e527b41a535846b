"""A phone's pictures, which the WebUI's own Python cannot read, are shown and described as every other."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from PIL import Image, UnidentifiedImageError
from starlette.testclient import TestClient

from dreambooth.core import project
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.project import Folders
from dreambooth.host.standalone import Standalone
from dreambooth.service import api, engine_pictures, environment
from dreambooth.ui.page import routes

_TURN_RIGHT = 6  # as EXIF has it
_WRITE = """
import sys, pillow_heif
from PIL import Image
path, turn = sys.argv[1], int(sys.argv[2])
exif = Image.Exif()
exif[0x0112] = turn
picture = Image.new("RGB", (1200, 600), "white")
picture.paste("red", (0, 0, 1200, 300))
pillow_heif.from_pillow(picture).save(path, exif=exif.tobytes())
"""


def phone_picture(path: Path, turn: int = 1) -> Path:
    """A picture 1200 pixels wide whose upper half is red, before it is turned."""
    subprocess.run([str(environment.python()), "-c", _WRITE, str(path), str(turn)], check=True)
    return path


class Describing(Standalone):
    """A host with a captioner that opens what it is given, as those of WebUIs do."""

    captioners = ("BLIP",)

    def describe(self, picture: Path, captioner: str) -> str:
        with Image.open(picture) as opened:
            return f"{opened.width} wide"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "photos"
    place.mkdir()
    phone_picture(place / "a.heic")
    phone_picture(place / "b.HEIC", _TURN_RIGHT)
    Image.new("RGB", (80, 40), "blue").save(place / "c.png")
    return place


@pytest.fixture
def shown(tmp_path: Path, place: Path) -> TestClient:
    folders = Folders(tmp_path / "models")
    own = {"concepts.0.instance_data_dir": str(place), "concepts.0.instance_prompt": "a [filewords]"}
    project.write_settings(project.create(folders, "star", MINIATURE), own)
    app, host = FastAPI(), Describing(str(folders.models))
    app.include_router(routes.router(host))
    app.include_router(api.router(host))
    return TestClient(app)


def picture(client: TestClient, **asked: Any) -> Image.Image:
    answer = client.get("/dreambooth/models/star/concepts/0/picture", params=asked)
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/jpeg"
    return Image.open(io.BytesIO(answer.content))


def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the engine is asked for from now on."""
    asked, ask = list[str](), engine_pictures._ask
    monkeypatch.setattr(engine_pictures, "_ask", lambda what, given=b"": (asked.append(what[0]), ask(what, given))[1])
    return asked


def test_they_are_shown_upright(shown: TestClient, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnidentifiedImageError):  # else this would prove nothing
        Image.open(place / "a.heic")
    asked = asked_for(monkeypatch)
    tiles = shown.get("/dreambooth/page/live?view=pictures&model=star").text
    assert "3 pictures" in tiles and "cannot be read" not in tiles
    assert "aspect-ratio:1200/600" in tiles and "aspect-ratio:600/1200" in tiles
    assert asked == ["sizes"], "all of a folder together"
    turned = picture(shown, file="b.HEIC", side=256)
    assert turned.size == (128, 256)
    red, white = turned.getpixel((120, 128)), turned.getpixel((8, 128))
    assert red[0] > 200 > 60 > red[1] and min(white) > 240  # turned to the right, what was above is at the right
    assert picture(shown, file="b.HEIC", side=64).size == (32, 64)
    assert asked == ["sizes", "jpeg"], "once for each picture"
    assert picture(shown, file="a.heic").size == (1200, 600), "for a browser, which shows no HEIC"


def test_one_that_was_replaced_is_read_anew(shown: TestClient, place: Path) -> None:
    assert picture(shown, file="a.heic", side=64).size == (64, 32)
    shutil.copyfile(place / "b.HEIC", place / "a.heic")
    assert picture(shown, file="a.heic", side=64).size == (32, 64)


def test_they_are_described(shown: TestClient, place: Path) -> None:
    begun = shown.post("/dreambooth/models/star/errands", json={"kind": "caption", "with": "BLIP"}).json()
    errand = f"/dreambooth/models/star/errands/{begun['number']}"
    while (said := shown.get(errand).json())["status"] == "running":
        time.sleep(0.05)
    assert said["status"] == "done" and len(said["result"]["captions"]) == 3
    assert (place / "a.txt").read_text() == f"{engine_pictures.LARGEST} wide\n"
    assert (place / "c.txt").read_text() == "80 wide\n"
    assert sorted(file.name for file in place.iterdir()) == ["a.heic", "a.txt", "b.HEIC", "b.txt", "c.png", "c.txt"]


def test_a_damaged_one_is_named(shown: TestClient, place: Path) -> None:
    whole = (place / "a.heic").read_bytes()
    (place / "a.heic").write_bytes(whole[:-100])
    (place / "b.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    tiles = shown.get("/dreambooth/page/live?view=pictures&model=star").text
    assert "b.HEIC: this picture cannot be read (it is damaged or no picture)" in tiles
    answer = shown.get("/dreambooth/models/star/concepts/0/picture", params={"file": "a.heic", "side": 64})
    assert answer.status_code == 400 and "it is damaged or no picture" in answer.json()["problems"][0]


def test_before_the_engine_is_set_up_it_is_said(shown: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "is_current", lambda: False)
    tiles = shown.get("/dreambooth/page/live?view=pictures&model=star").text
    assert tiles.count("shown as soon as the engine is set up") == 2
    monkeypatch.undo()
    assert "shown as soon as" not in shown.get("/dreambooth/page/live?view=pictures&model=star").text


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("os._exit(9)", "it ended with code 9"),
        pytest.param("time.sleep(600)", "it took the engine more than 20 seconds", marks=pytest.mark.thorough),
    ],
)
def test_one_that_ends_the_engine_or_holds_it_up_spoils_no_other(
    shown: TestClient, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, said: str
) -> None:
    shutil.copyfile(place / "a.heic", place / "bad.heic")
    shutil.copyfile(place / "a.heic", place / "z.heic")
    hook = "import os, sys, time; sys.addaudithook(lambda event, about: event == 'open' and "
    (tmp_path / "sitecustomize.py").write_text(f"{hook}str(about[0]).endswith('bad.heic') and {does})")
    variables = {**environment.engine_variables(), "PYTHONPATH": str(tmp_path)}
    monkeypatch.setattr(environment, "engine_variables", lambda: variables)
    monkeypatch.setattr(engine_pictures, "_SECONDS", 20)
    asked = asked_for(monkeypatch)
    for _ in range(3):
        tiles = shown.get("/dreambooth/page/live?view=pictures&model=star").text
        assert f"bad.heic: the engine broke off at this picture ({said}); save it anew" in tiles
        assert tiles.count("cannot be read") == 0 and tiles.count("db-frame") == 4
    assert asked == ["sizes"] * 3, "all, those behind it, and it alone; then no more"
    for side in (64, 0, 256, 0):
        answer = shown.get("/dreambooth/models/star/concepts/0/picture", params={"file": "bad.heic", "side": side})
        assert f"bad.heic: the engine broke off at this picture ({said}); save it anew" in answer.json()["problems"][0]
    assert asked[3:] == ["jpeg"] * 2, "once small and once whole"
    os.utime(place / "bad.heic")
    (tmp_path / "sitecustomize.py").unlink()
    assert shown.get("/dreambooth/page/live?view=pictures&model=star").text.count("db-frame") == 5
