"""A person says what is kept of a picture, with the mouse or the keyboard, and the plan makes that crop."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from dreambooth.core import focal_point, job_list, project
from dreambooth.core.focal_point import FocalPoint
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.project import Folders, open_project
from dreambooth.core.settings import parse
from dreambooth.engine import plan
from dreambooth.service import launcher
from dreambooth.service.pictures import write_point
from dreambooth.ui.page.concept_view import concept_view
from tests.ui.page.conftest import Server
from tests.ui.page.contrast import FAINT
from tests.ui.page.hands import Hands
from tests.ui.page.test_access import NAMELESS, TOO_WIDE, Keyboard
from tests.ui.page.test_browser import until

NAME = "wide"
PICTURE = "#db_pictures .db-crop-picture"


@pytest.fixture(scope="module")
def folder(data: Path) -> Path:
    """A picture whose subject the middle cuts off, one that is high, and one that is trained as it is."""
    folder = data / "mine"
    folder.mkdir()
    for name, size, middle in (("a", (320, 128), (48, 64)), ("b", (128, 256), (64, 40)), ("c", (64, 64), (32, 32))):
        picture = Image.new("RGB", size, "steelblue")
        x, y = middle
        ImageDraw.Draw(picture).ellipse((x - 30, y - 30, x + 30, y + 30), fill="gold")
        picture.save(folder / f"{name}.png")
    own = {"concepts.0.instance_data_dir": str(folder), "concepts.0.instance_prompt": "a sks star"}
    project.create(Folders(data), NAME, MINIATURE, own)
    return folder


@pytest.mark.parametrize("crop", ["centre", "random", "smart"])
def test_the_page_draws_the_crop_that_is_made(tmp_path: Path, crop: str) -> None:
    folders, photo = Folders(tmp_path / "models"), tmp_path / "mine" / "a.png"
    photo.parent.mkdir()
    Image.linear_gradient("L").resize((192, 64)).save(photo)
    own = {"concepts.0.instance_data_dir": str(photo.parent), "concepts.0.instance_prompt": "x", "pictures.crop": crop}
    opened = project.create(folders, "x", MINIATURE, own)

    def drawn() -> tuple[float, ...] | None:
        shown = re.search(r"<i title=\S* style=.left:(.*?)%;top:(.*?)%;width:(.*?)%;height:(.*?)%", frame())
        return shown and tuple(float(side) for side in shown.groups())

    def frame() -> str:
        return concept_view(folders, "x", 0, 48).replace("trained at 64x64", "64x64")

    def planned() -> tuple[float, ...]:
        job = launcher.new_errand(folders, opened, "check", parse(opened.settings()))
        job.report("done", **(said := plan.report(job)))
        left, top, right, bottom = said["pictures"][0]["crops"][0]
        return 100 * left / 192, 100 * top / 64, 100 * (right - left) / 192, 100 * (bottom - top) / 64

    assert (drawn() is None) == (crop == "smart"), "what stands out is looked for by the check"
    assert planned() == pytest.approx(drawn(), abs=0.05)
    write_point(photo, FocalPoint(0.9, 0.5))
    by_hand = drawn()
    assert by_hand == (66.67, 0, 33.33, 100) and "db-by-hand" in frame()
    assert planned() == pytest.approx(by_hand, abs=0.05)
    write_point(photo, None)
    assert drawn() != by_hand, "the check's crop was that of the point"
    focal_point.beside(photo).write_text("here")
    assert "a.focus: it holds no crop" in frame() and str(photo.parent) not in re.sub("<[^>]*>", "", frame())


@pytest.fixture
def hands(browser: Any, server: Server, folder: Path) -> Iterator[Hands]:
    opened = Hands(browser, server.address)
    opened.tab("Concepts")
    opened.see("#db_pictures .db-tile")
    yield opened
    assert opened.errors == []
    opened.page.close()
    for name in ("a", "b"):
        (folder / f"{name}.focus").unlink(missing_ok=True)


def crop_of(hands: Hands, name: str) -> Any:
    return hands.page.locator(f'#db_pictures button[aria-label^="Crop {name}.png"]')


def frame(hands: Hands, where: str = PICTURE) -> list[float]:
    """Left, top, width and height of a frame, in hundredths of the picture."""
    style = hands.page.locator(f"{where} i").first.get_attribute("style")
    return [float(re.search(rf"(?<![\w-]){side}: ?([\d.]+)%", style)[1]) for side in ("left", "top", "width", "height")]


def planned(hands: Hands, data: Path) -> list[list[float]]:
    """The crops of all pictures that a check shows, made on the page."""
    opened, pressed = open_project(Folders(data), NAME), time.time()
    hands.press("db_check")
    until(lambda: any(job.status() == "done" and job.read()["created"] > pressed for job in job_list.errands(opened)))
    ending = job_list.errands(opened)[-1].story().ending
    assert ending and not ending["problems"]
    return [row["crops"][0] for row in ending["pictures"]]


def test_a_click_moves_the_crop_and_the_plan_has_it(hands: Hands, folder: Path, data: Path) -> None:
    before = (folder / "a.png").read_bytes()
    assert planned(hands, data)[0] == [96, 0, 224, 128]
    assert crop_of(hands, "c").count() == 0, "of a picture that is trained as it is there is nothing to choose"
    crop_of(hands, "a").click()
    hands.see("#db_crop_said", "Automatic: the middle. Kept: 30 to 70 % of the width, 0 to 100 % of the height.")
    assert frame(hands) == [30, 0, 40, 100]
    surface = hands.see(PICTURE)
    box = surface.bounding_box()
    assert box["width"] / box["height"] == pytest.approx(2.5, rel=0.01)
    until(lambda: surface.locator("img").evaluate("image => image.complete && image.naturalWidth") == 320)
    surface.click(position={"x": 0.25 * box["width"], "y": 0.5 * box["height"]})
    hands.see("#db_crop_said", "By hand: around 25 % from the left, 50 % from the top. Kept: 5 to 45 % of the width")
    until(lambda: focal_point.beside(folder / "a.png").is_file())
    hands.see("#db_pictures .db-crop-open.db-by-hand")
    drawn = frame(hands)
    assert drawn == pytest.approx([5, 0, 40, 100], abs=0.5)
    assert frame(hands, "#db_pictures .db-tile") == pytest.approx(drawn, abs=0.05), "the picture below shows the same"
    tile = hands.page.locator("#db_pictures .db-frame").first
    assert tile.bounding_box() == tile.locator("img").bounding_box(), "the frame is drawn over the picture's own edges"
    left, _, right, _ = planned(hands, data)[0]
    assert [100 * left / 320, 100 * (right - left) / 320] == pytest.approx([drawn[0], drawn[2]], abs=0.05)
    sheet = hands.page.frame_locator("#db_plan iframe")
    until(lambda: "crop by hand" in sheet.locator("figure").first.inner_text())
    surface.click(position={"x": 2, "y": 2})
    until(lambda: frame(hands)[0] == 0)
    hands.page.locator(".db-crop button", has_text="Automatic").click()
    hands.see("#db_crop_said", "Automatic: the middle.")
    until(lambda: not focal_point.beside(folder / "a.png").exists())
    assert frame(hands) == [30, 0, 40, 100]
    assert planned(hands, data)[0] == [96, 0, 224, 128]
    assert (folder / "a.png").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b.png", "c.png"]


def test_a_mouse_drags_it(hands: Hands, folder: Path) -> None:
    crop_of(hands, "b").click()
    box, mouse = hands.see(PICTURE).bounding_box(), hands.page.mouse
    mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    mouse.down()
    for share in (0.4, 0.3, 0.1):
        mouse.move(box["x"] + box["width"] / 2, box["y"] + share * box["height"])
    assert frame(hands)[1] == 0
    mouse.up()
    until(lambda: focal_point.beside(folder / "b.png").is_file())
    until(lambda: focal_point.read(folder / "b.png").y == pytest.approx(0.1, abs=0.01))


def test_the_keyboard_alone_chooses_and_a_screen_reader_hears_it(hands: Hands, folder: Path) -> None:
    person = Keyboard(hands)
    hands.page.locator("#db_concepts_N_instance_prompt :is(textarea, input)").first.focus()
    person.reach('[aria-label="Crop a.png"]')
    person.keys.press("Enter")
    hands.see(f"{PICTURE}:focus")
    person.keys.press("ArrowUp")  # where there is no room nothing is chosen
    person.keys.press("Control+=")  # the browser's own
    assert hands.page.locator("#db_told p").inner_text().startswith("Automatic: the middle.")
    for key in ("ArrowLeft", "Shift+ArrowLeft", "ArrowRight"):
        person.keys.press(key)
    said = hands.page.locator("#db_told p")
    until(
        lambda: said.inner_text().startswith("By hand: around 40 % from the left, 50 % from the top. Kept: 20 to 60 %")
    )
    until(lambda: focal_point.beside(folder / "a.png").is_file())
    assert focal_point.read(folder / "a.png") == FocalPoint(0.4, 0.5)
    hands.page.wait_for_timeout(1500)  # the page has drawn the pictures anew
    hands.see(f"{PICTURE}:focus")
    for _ in range(8):
        person.keys.press("Shift+ArrowLeft")
    person.keys.press("ArrowRight")
    until(lambda: focal_point.read(folder / "a.png") == FocalPoint(0.22, 0.5))
    person.reach(".db-crop input[type=range]")
    person.keys.press("End")
    until(lambda: focal_point.read(folder / "a.png") == FocalPoint(0.22, 0.5, 2))
    assert frame(hands) == pytest.approx([12, 25, 20, 50], abs=0.1)
    hands.see("#db_crop_said", "2.00 times closer. Kept: 12 to 32 % of the width, 25 to 75 % of the height.")
    person.reach(".db-crop button", back=False)
    tree = hands.page.context.new_cdp_session(hands.page).send("Accessibility.getFullAXTree")
    told = [node["name"]["value"] for node in tree["nodes"] if node.get("role", {}).get("value") == "application"]
    assert told == ["Crop a.png"]
    person.keys.press("Escape")
    hands.see('[aria-label="Crop a.png, chosen by hand"]:focus')
    assert hands.page.locator(".db-crop").count() == 0


def test_one_goes_from_picture_to_picture_and_nothing_is_lost(hands: Hands, folder: Path) -> None:
    crop_of(hands, "a").click()
    hands.page.keyboard.press("ArrowRight")
    hands.page.locator(".db-crop button", has_text="Next picture").click()  # before it is written
    hands.see(".db-crop h4", "b.png")
    hands.see("#db_crop_said", "Automatic: the middle. Kept: 0 to 100 % of the width, 25 to 75 % of the height.")
    until(lambda: focal_point.beside(folder / "a.png").is_file())
    assert not focal_point.beside(folder / "b.png").exists()
    hands.page.locator(".db-crop button", has_text="Next picture").click()
    hands.see(".db-crop h4", "a.png")
    hands.see("#db_crop_said", "By hand: around 52 % from the left")
    hands.page.locator(".db-crop button", has_text="Done").click()
    assert hands.page.locator(".db-crop").count() == 0


def test_what_cannot_be_written_is_said_and_what_cannot_be_read_is_forgotten(hands: Hands, folder: Path) -> None:
    (folder / "a.focus").mkdir()
    crop_of(hands, "a").click()
    hands.page.keyboard.press("ArrowRight")
    hands.see("#db_pictures .db-refused", "a.focus: the crop cannot be written")
    hands.see("#db_crop_said", "Automatic: the middle.")
    (folder / "a.focus").rmdir()
    (folder / "a.focus").write_text("somewhere")
    hands.see("#db_pictures .db-tile .db-problems", "a.focus: it holds no crop")
    hands.open()
    hands.tab("Concepts")
    crop_of(hands, "a").click()
    hands.page.locator(".db-crop button", has_text="Automatic").click()
    until(lambda: not (folder / "a.focus").exists())
    until(lambda: not hands.page.locator("#db_pictures .db-tile .db-problems").count())


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_it_has_names_can_be_read_and_fits(browser: Any, server: Server, folder: Path, width: int, dark: bool) -> None:
    (folder / "b.focus").write_text(focal_point.text(FocalPoint(0.5, 0.2, 1.5)))
    hands = Hands(browser, server.address, width, dark=dark)
    hands.tab("Concepts")
    for name in ("a", "b"):
        crop_of(hands, name).click()
        hands.see(".db-crop h4", f"{name}.png")
        hands.page.wait_for_timeout(500)
        assert [hands.page.evaluate(look) for look in (NAMELESS, TOO_WIDE, FAINT)] == [[], [], []]
        assert hands.see(PICTURE).bounding_box()["height"] < 500, "it fits with its buttons"
    hands.page.close()
    (folder / "b.focus").unlink()


def test_a_phones_finger_chooses_without_holding_the_page(browser: Any, server: Server, folder: Path) -> None:
    context = browser.new_context(viewport={"width": 400, "height": 800}, has_touch=True)
    page = context.new_page()
    page.goto(server.address)
    page.locator("#db_tabs > .tab-nav button, #db_tabs button[role=tab]").filter(has_text="Concepts").first.click()
    page.locator('#db_pictures button[aria-label="Crop a.png"]').tap()
    surface = page.locator(PICTURE)
    box = surface.bounding_box()
    surface.tap(position={"x": 0.8 * box["width"], "y": 10})
    until(lambda: focal_point.beside(folder / "a.png").is_file())
    assert json.loads((folder / "a.focus").read_text())["x"] == pytest.approx(0.8, abs=0.01)
    context.close()
    (folder / "a.focus").unlink()
