"""How many pictures are drawn together where nobody has said: what is free decides, and what was begun goes on so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dreambooth.core import project
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import parse
from dreambooth.engine import class_images, families, generate, hardware
from dreambooth.engine.bench import drawing_footprint, random_model
from dreambooth.engine.bench.footprint import Point
from dreambooth.engine.drawing import drawn_together, sheet
from dreambooth.engine.drawing.sampling_choice import Sampling
from dreambooth.engine.families.model import Model
from dreambooth.engine.run import recovery
from dreambooth.engine.training import adapters, preview
from dreambooth.service import launcher, short_jobs
from tests.engine import tiny
from tests.engine.runs import told
from tests.engine.test_live_tensors import SMALL

SMALL_PICTURES, LARGE = Sampling(64, 64), Sampling(512, 512)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return families.load_file(tiny.write_original(tmp_path_factory.mktemp("sd1") / "sd1.safetensors", "sd1"))


@pytest.fixture
def star(tmp_path: Path) -> Project:
    return project.create(Folders(tmp_path), "star", tiny.write_original(tmp_path / "sd1.safetensors", "sd1"))


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Says how many bytes are free from now on."""

    def now(count: float) -> None:
        monkeypatch.setattr(
            hardware, "psutil", SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=count))
        )

    return now


def test_the_free_memory_decides(model: Model, free: Callable[[float], None]) -> None:
    numbers = []
    for gigabytes in (0.01, 2, 50):
        free(gigabytes * 1e9)
        numbers.append(drawn_together.choose(model, SMALL_PICTURES, 100, "sliced"))
    assert numbers == [1, 15, 15], "parts of 16 at most, all of about the same size"
    free(0.9e9)
    whole, sliced = (drawn_together.choose(model, LARGE, 100, how) for how in ("whole", "sliced"))
    assert (whole, sliced) == (1, 1)
    free(3.0e9)
    whole, sliced = (drawn_together.choose(model, LARGE, 100, how) for how in ("whole", "sliced"))
    assert (whole, sliced) == (2, 4)


def test_in_which_precision_it_draws(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn_together.how(model) == "no"
    monkeypatch.setattr(model, "drawn_in", torch.bfloat16)
    assert drawn_together.how(model) == "mixed"
    assert drawn_together._kept(model) == 0
    learning = families.load_file(model.header.path)  # type: ignore[union-attr]
    adapters.make_trainable(learning, parse({"general.method": "full"}))
    with torch.autocast("cpu", torch.bfloat16):
        assert drawn_together._kept(learning) == 2 * sum(weight.numel() for weight in learning.unet.parameters())
        learning.unet.to(torch.bfloat16)
        assert drawn_together.how(learning) == "half/autocast"
    assert drawn_together.how(learning) == "half"


@pytest.mark.parametrize("how", drawing_footprint.HOW)
def test_without_a_card_the_same_is_counted(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """What predictions hold, and that it grows with them and their size as the table has it."""
    monkeypatch.setitem(random_model._UNETS, "sd1", SMALL)
    counted = drawing_footprint.count("sd1", how, Point(4, 16))
    assert counted == pytest.approx(drawing_footprint.count("sd1", how, Point(4, 16), fake=False), rel=0.02)
    assert counted == pytest.approx(2 * drawing_footprint.count("sd1", how, Point(2, 16)), rel=0.05)


def test_tiles_are_smaller_than_a_large_models_pictures(tmp_path: Path) -> None:
    """By themselves the tiles of SDXL's VAE are 1024 pixels wide, so that nothing would be saved."""
    made = families.load_file(
        tiny.write_original(tmp_path / "xl.safetensors", "sdxl", **{"modelspec.resolution": "1024x1024"})
    )
    assert made.resolution == 1024
    assert (made.vae.tile_sample_min_size, made.vae.tile_latent_min_size) == (512, 64)


def drawing(star: Project, count: int = 10) -> tuple[Job, Any]:
    """An errand that makes class pictures."""
    picture = star.folder / "mine" / "a.png"
    if not picture.exists():
        picture.parent.mkdir(parents=True, exist_ok=True)
        from PIL import Image

        Image.new("RGB", (64, 64), "red").save(picture)
    chosen = parse(
        {
            "general.resolution": 64,
            "concepts.0.instance_data_dir": str(picture.parent),
            "concepts.0.instance_prompt": "a sks star",
            "concepts.0.class_prompt": "a star",
            "concepts.0.num_class_images_per": count,
            "concepts.0.class_infer_steps": 1,
        }
    )
    return launcher.new_errand(Folders(star.folder.parents[1]), star, "class-images", chosen), chosen


def done(job: Job) -> list[int]:
    return [event["done"] for event in told(job, "stage") if event["name"] == "class pictures"]


def test_class_pictures_after_a_kill_are_those_that_would_have_been_made(
    star: Project, free: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in star.class_pictures.rglob("*.png")}

    monkeypatch.setattr(drawn_together, "most_together", lambda area, on_card: 4)
    free(1.3e9)
    job, _ = drawing(star)
    class_images.run(job)
    assert done(job) == [0, 4, 8, 10]
    whole = files()
    for name in list(whole)[3:7]:  # two batches have holes
        next(star.class_pictures.rglob(name)).unlink()
    monkeypatch.setattr(drawn_together, "most_together", lambda area, on_card: 6)
    job, _ = drawing(star)
    class_images.run(job)
    assert sum(done(job)[-1:]) == 4
    assert files() == whole
    for path in star.class_pictures.rglob("*.png"):
        path.unlink()
    job, _ = drawing(star)
    class_images.run(job)
    assert done(job) == [0, 5, 10], "from nothing, as many as is right now"


def test_previews_are_drawn_as_the_memory_has_it(
    model: Model, free: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes: list[int] = []
    draw = preview.draw
    monkeypatch.setattr(
        preview, "draw", lambda m, text, seeds, *rest: sizes.append(len(seeds)) or draw(m, text, seeds, *rest)
    )
    some = {"previews.prompts": "a; b", "previews.count": 3, "previews.steps": 1}
    for gigabytes, batch, expected in ((50, 0, [6]), (0.01, 0, [1] * 6), (0.01, 4, [4, 2])):
        free(gigabytes * 1e9)
        sizes.clear()
        preview.make(model, parse({**some, "batching.class_batch_size": batch}), tmp_path, 0, 64)
        assert sizes == expected


def test_the_retreat_goes_on_from_what_was_drawn_together() -> None:
    settings, found = parse({}), []
    for together in (16, 8, 1, 0):
        step = recovery.next_memory_saving(settings, "previews", together)
        found.append(step[0] if step else None)
    tiles = {"memory.vae_decoding": "tiled"}
    assert found == [{"batching.class_batch_size": 8}, {"batching.class_batch_size": 4}, tiles, tiles]
    own = parse({"batching.class_batch_size": 2})
    assert recovery.next_memory_saving(own, "class pictures", 16) == (
        {"batching.class_batch_size": 1},
        "1 pictures drawn at a time",
    )


@pytest.mark.parametrize("batch", [0, 4])
def test_generate_takes_less_where_memory_is_short(
    star: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, batch: int
) -> None:
    """Where a number was asked for it is drawn so, or not at all."""
    sizes: list[int] = []
    draw = generate.draw

    def short(model: Any, text: Any, seeds: list[int], *rest: Any, **more: Any) -> Any:
        sizes.append(len(seeds))
        if len(seeds) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return draw(model, text, seeds, *rest, **more)

    monkeypatch.setattr(generate, "draw", short)
    asked = {"prompt": "a star", "base": True, "count": 5, "steps": 1, "width": 64, "height": 64, "batch": batch}
    chosen, fields = short_jobs.drawing(star, {**asked, "out": str(tmp_path / "out")})
    job = launcher.new_errand(Folders(star.folder.parents[1]), star, "generate", chosen, **fields)
    if batch:
        with pytest.raises(torch.OutOfMemoryError):
            generate.run(job)
        return
    assert len(generate.run(job)["pictures"]) == 5
    assert sizes == [5, 2, 2, 1]


@pytest.mark.parametrize(("batch", "sizes"), [(0, [2, 1, 1, 1]), (2, [2, 2])])
def test_generate_decodes_in_tiles_where_the_memory_is_short_of_one_picture(
    star: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, batch: int, sizes: list[int]
) -> None:
    found: list[int] = []
    monkeypatch.setattr(generate, "draw", _short_without_tiles(generate.draw, found))
    asked = {"prompt": "a star", "base": True, "count": 2, "steps": 1, "width": 64, "height": 64, "batch": batch}
    chosen, fields = short_jobs.drawing(star, {**asked, "out": str(tmp_path / "out")})
    job = launcher.new_errand(Folders(star.folder.parents[1]), star, "generate", chosen, **fields)
    assert len(generate.run(job)["pictures"]) == 2
    assert found == sizes
    [warning] = told(job, "warning")
    assert warning["where"] == "memory.vae_decoding"


def test_a_sheet_does_so_from_the_first_picture_that_does_not_fit(
    star: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found: list[int] = []
    monkeypatch.setattr(sheet, "draw", _short_without_tiles(sheet.draw, found))
    asked = {"prompt": "a star", "steps": 1, "width": 64, "height": 64, "sheet": {"weights": ["", ""]}}
    chosen, fields = short_jobs.sheet(star, {**asked, "out": str(tmp_path / "out")})
    job = launcher.new_errand(Folders(star.folder.parents[1]), star, "generate", chosen, **fields)
    assert len(generate.run(job)["pictures"]) == 2
    assert found == [1, 1, 1]
    assert len(told(job, "warning")) == 1


def _short_without_tiles(draw: Callable[..., Any], sizes: list[int]) -> Callable[..., Any]:
    def short(model: Model, text: Any, seeds: list[int], *rest: Any, **more: Any) -> Any:
        sizes.append(len(seeds))
        if not model.vae.use_tiling:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return draw(model, text, seeds, *rest, **more)

    return short
