"""Parts that rest are on the device only while they are used. The device is torch's meta, which holds shapes alone."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from dreambooth.core import project
from dreambooth.core.project import Folders
from dreambooth.core.settings import parse
from dreambooth.engine import families
from dreambooth.engine.checkpoints.source import open_model
from dreambooth.engine.families.model import Model
from dreambooth.engine.run import setup
from dreambooth.engine.work import Work
from dreambooth.service import launcher
from tests.engine import tiny

META = torch.device("meta")


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return families.load_file(tiny.write_original(tmp_path / "x.safetensors", "sdxl"))


def places(model: Model, part: str) -> set[str]:
    return {tensor.device.type for tensor in model.parts[part].state_dict().values()}


def test_parts_come_to_the_device_while_they_are_used_and_leave_it_unchanged(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which knows no meta device
    before = {part: module.state_dict() for part, module in model.parts.items() if part != "unet"}
    model.to(META, aside=["vae", "text_encoder", "text_encoder_2"])
    assert places(model, "unet") == {"meta"}
    with torch.no_grad():
        assert model.encode_text(["a star"]).hidden.device == META
        assert model.decode(torch.zeros(1, 4, 8, 8, device=META)).device == META
        with model.present("vae"):
            assert places(model, "vae") == {"meta"}
            model.decode(torch.zeros(1, 4, 8, 8, device=META))
            assert places(model, "vae") == {"meta"}, "what is there stays until the outermost is left"
    for part, state in before.items():
        after = model.parts[part].state_dict()
        assert all(after[name] is tensor or torch.equal(after[name], tensor) for name, tensor in state.items())


def test_only_one_text_encoder_is_there_at_a_time(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """SDXL's second is large; each comes once for all prompts."""
    model.to(META, aside=["text_encoder", "text_encoder_2"])
    original, there = type(model).run_encoder, list[tuple[str, set[str], set[str]]]()

    def run_encoder(own: Model, part: str, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        there.append((part, places(own, "text_encoder"), places(own, "text_encoder_2")))
        return original(own, part, tokens)

    monkeypatch.setattr(type(model), "run_encoder", run_encoder)
    with torch.no_grad():
        assert len(model.encode_texts([["a star"], ["a cat"]])) == 2
    first, second = ("text_encoder", {"meta"}, {"cpu"}), ("text_encoder_2", {"cpu"}, {"meta"})
    assert there == [first, first, second, second]


def test_an_error_leaves_them_aside(model: Model) -> None:
    model.to(META, aside=["vae"])
    with pytest.raises(RuntimeError), model.present("vae"):
        raise RuntimeError
    assert places(model, "vae") == {"cpu"}


@pytest.mark.parametrize("learning", [False, True])
def test_a_run_puts_aside_what_does_not_learn(learning: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[set[str]] = []
    monkeypatch.setattr(Model, "to", lambda self, device, aside=(): found.append(set(aside)))
    folders = Folders(tmp_path)
    made = project.create(folders, "x", tiny.write_original(tmp_path / "x.safetensors", "sdxl"))
    work = Work.open(launcher.new_run(folders, made, parse({"tuning.text_encoder_ratio": float(learning)})))
    setup.load(work, open_model(made))
    assert found == [{"vae"} if learning else {"vae", "text_encoder", "text_encoder_2"}]


def test_vectors_that_come_later_come_to_the_device_too(model: Model) -> None:
    model.to(META, aside=["text_encoder", "text_encoder_2"])
    model.set_learned_tokens({"sks": {part: torch.ones(2, 32) for part in model.text_encoders}})
    with torch.no_grad():
        assert model.encode_text(["a sks"]).hidden.device == META
    model.set_learned_tokens({})
    with torch.no_grad():
        assert model.encode_text(["a sks"]).hidden.device == META
