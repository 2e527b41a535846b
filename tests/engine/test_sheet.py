"""A sheet of results at weights: each cell is what a single picture with that result at that weight would be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth.core import project
from dreambooth.core.errors import UserError
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import parse
from dreambooth.engine import families, generate
from dreambooth.engine.checkpoints import lora
from dreambooth.engine.checkpoints.write import write_tensors
from dreambooth.engine.drawing import prediction
from dreambooth.engine.drawing.sampling import NotDrawn
from dreambooth.engine.training import adapters
from dreambooth.service import launcher, short_jobs
from tests.engine import tiny
from tests.engine.test_recovery import no_numbers

PROMPT = {"prompt": "a red star", "steps": 3, "width": 64, "height": 64, "seed": 7}


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A tiny model, with a LoRA of it."""
    place = tmp_path_factory.mktemp("sheet")
    base = tiny.write_original(place / "base.safetensors", "sd1")
    made = project.create(Folders(place / "models"), "star", base)
    model = families.load_file(base)
    torch.manual_seed(3)
    for parameter in adapters.make_trainable(model, parse({})).named().values():
        parameter.data = torch.randn_like(parameter) * 0.1
    write_tensors(made.folder / "taught.safetensors", lora.lora_tensors(model.parts, model.family, half=False), {})
    return made


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def drawn(star: Project, ask: object, **wanted: object) -> list[str]:
    chosen, fields = ask(star, {**PROMPT, **wanted})  # type: ignore[operator]
    job = launcher.new_errand(Folders(star.folder.parents[1]), star, "generate", chosen, **fields)
    return list(generate.run(job)["pictures"])


def test_each_cell_is_the_picture_of_its_result_at_its_weight(star: Project) -> None:
    taught = str(star.folder / "taught.safetensors")
    made = drawn(star, short_jobs.sheet, sheet={"weights": [taught, "", taught], "lora_weights": [0, 1]})
    assert [Path(path).stem for path in made] == ["00-00", "00-01", "01-00", "02-00", "02-01"]
    [base] = drawn(star, short_jobs.drawing, base=True)
    [full] = drawn(star, short_jobs.drawing, weights=taught)
    nothing, whole, before, again_nothing, again_whole = map(pixels, made)
    assert (nothing == pixels(base)).all() and (before == pixels(base)).all()
    assert (whole == pixels(full)).all() and (whole != nothing).any()
    assert (again_nothing == nothing).all() and (again_whole == whole).all()


def test_nothing_is_recorded_where_the_settings_say_so(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "record", lambda *_: pytest.fail("it was recorded"))
    a_sheet = {"sheet": {"weights": [""], "lora_weights": [1]}}
    for ask, more in ((short_jobs.drawing, {"base": True}), (short_jobs.sheet, a_sheet)):
        chosen, fields = ask(star, {**PROMPT, **more, "steps": prediction.WORTH + 1})
        chosen.tuning.trace_steps = False
        job = launcher.new_errand(Folders(star.folder.parents[1]), star, "generate", chosen, **fields)
        assert len(generate.run(job)["pictures"]) == 1


def test_the_place_of_what_is_no_picture_stays_empty(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    taught = str(star.folder / "taught.safetensors")
    wanted = {"weights": ["", taught], "lora_weights": [1]}
    no_numbers(monkeypatch, times=1)
    made = drawn(star, short_jobs.sheet, sheet=wanted)
    assert [Path(path).stem for path in made] == ["01-00"]
    assert Path(made[0]).with_name("sheet.png").exists()
    no_numbers(monkeypatch)
    with pytest.raises(NotDrawn):
        drawn(star, short_jobs.sheet, sheet=wanted)


@pytest.mark.parametrize(
    ("sheet", "said"),
    [
        ("all", "must be a JSON object"),
        ({"weights": []}, "name at least one result"),
        ({"weights": [""], "lora_weights": ["much"]}, "must be numbers from -4 to 4"),
        ({"weights": [""], "lora_weights": [9]}, "must be numbers from -4 to 4"),
        ({"weights": [""] * 21, "lora_weights": [0] * 10}, "more than 200 pictures"),
    ],
)
def test_what_cannot_be_a_sheet_is_refused(star: Project, sheet: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        short_jobs.sheet(star, {**PROMPT, "sheet": sheet})
