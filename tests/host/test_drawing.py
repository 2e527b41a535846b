"""Pictures by the WebUI's own txt2img: what it is asked for, its turn, its progress, and what stands in the way."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dreambooth.core.drawing import Drawing
from dreambooth.core.errors import UserError
from tests.host.conftest import StandIn


@pytest.fixture
def host(webui: StandIn) -> Any:
    return webui.load_script().HOST


@pytest.fixture
def checkpoint(webui: StandIn) -> Path:
    """One that has just been written: the WebUI has not looked since."""
    file = webui.models / "Stable-diffusion" / "star.safetensors"
    file.touch()
    return file


class Album:
    """What came of a drawing."""

    def __init__(self, stop_at: float = 2.0) -> None:
        self.shares: list[float] = []
        self.kept: list[tuple[int, str]] = []
        self.greys: list[int] = []
        self.stop_at = stop_at

    def look(self, share: float) -> bool:
        self.shares.append(share)
        return share >= self.stop_at

    def keep(self, picture: Any, seed: int, words: str) -> None:
        self.kept.append((seed, words))
        self.greys.append(picture.getpixel((0, 0))[0])


def wanted(checkpoint: Path, **changes: Any) -> Drawing:
    plain = Drawing("a star <lora:star:0.5>", "blurry", "Euler a", 8, 7.5, 64, 128, (7, 8, 9), 2, checkpoint)
    return replace(plain, **changes)


def test_the_samplers_are_the_webuis(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.samplers == ("Euler a", "DPM++ 2M")
    monkeypatch.setattr(host, "name", "SD.Next")
    assert host.samplers == ()


def test_batches_are_drawn_in_turn_with_the_checkpoint_and_nothing_else_kept(
    host: Any, webui: StandIn, checkpoint: Path
) -> None:
    album = Album()
    host.draw(wanted(checkpoint), album.look, album.keep)
    assert [seed for seed, _ in album.kept] == album.greys == [7, 8, 9], "the grid is no picture"
    assert album.kept[2][1] == "a star <lora:star:0.5>\nSeed: 9"
    first, second = (request.wanted for request in webui.module("processing").requests)
    assert (first["seed"], first["batch_size"], second["seed"], second["batch_size"]) == (7, 2, 9, 1)
    assert first["override_settings"] == {"sd_model_checkpoint": "star.safetensors [0123456789]"}
    assert (first["sampler_name"], first["steps"], first["cfg_scale"]) == ("Euler a", 8, 7.5)
    assert (first["width"], first["height"], first["negative_prompt"]) == (64, 128, "blurry")
    assert first["do_not_save_samples"] and first["do_not_save_grid"]
    assert not any(request.is_open for request in webui.module("processing").requests)
    assert 0 < max(album.shares) < 1 and album.shares[0] == 0
    assert webui.module("call_queue").queue_lock.acquire(False), "the queue is free again"
    assert webui.module("shared").total_tqdm.steps == 0, "the next picture's bar on the console begins anew"


def test_a_batch_that_is_stopped_is_not_kept(host: Any, webui: StandIn, checkpoint: Path) -> None:
    album = Album(stop_at=0.25)
    host.draw(wanted(checkpoint, steps=100), album.look, album.keep)
    assert album.kept == [] and len(webui.module("processing").requests) == 1
    assert not webui.module("shared").state.interrupted, "the WebUI's next picture is not stopped"
    before = Album(stop_at=0.0)
    host.draw(wanted(checkpoint), before.look, before.keep)
    assert len(webui.module("processing").requests) == 1, "what is stopped before its turn is never begun"


def test_what_the_webui_does_not_have_is_refused(host: Any, webui: StandIn, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not have it in its list of checkpoints; put it into its folder"):
        host.draw(wanted(tmp_path / "elsewhere.safetensors"), Album().look, Album().keep)


@pytest.mark.parametrize("forge", [False, True])
def test_what_goes_wrong_is_one_sentence(
    host: Any, webui: StandIn, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, forge: bool
) -> None:
    if forge:  # which has a thread of its own for this, and keeps its errors to itself

        def alone(work: Any) -> None:
            work()

        thread = SimpleNamespace(run_and_wait_result=alone, last_exception=None)
        monkeypatch.setitem(sys.modules, "modules_forge.main_thread", thread)

    def break_off() -> None:
        raise RuntimeError("CUDA out of memory.\nTried to allocate")

    webui.module("sd_models").list_models()
    host.draw(wanted(checkpoint, steps=1), Album().look, Album().keep)
    __import__("modules.processing")
    monkeypatch.setattr(webui.module("processing"), "meanwhile", [break_off])
    with pytest.raises(UserError, match=r"^The WebUI cannot draw this: CUDA out of memory\.$"):
        host.draw(wanted(checkpoint), Album().look, Album().keep)
    host.lend_gpu()
    with pytest.raises(UserError, match="Dreambooth has the GPU"):
        host.draw(wanted(checkpoint), Album().look, Album().keep)
