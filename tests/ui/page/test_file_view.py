"""What a source or a file to go on from is, told before anything is made of it, and not before somebody turns to it."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from dreambooth.core import project
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.models import checkpoint
from dreambooth.service import queue
from dreambooth.ui.page import actions
from dreambooth.ui.page.file_view import start_view
from dreambooth.ui.page.page import Page
from tests.ui.page.laid_out import laid_out

LAYER = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


def lora(path: Path, width: int, **metadata: str) -> Path:
    """A LoRA's file as far as its header goes, for a family whose text is so wide."""
    shapes = {f"{LAYER}.lora_down.weight": [4, width], f"{LAYER}.lora_up.weight": [320, 4]}
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * shape[0] * shape[1]
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    said = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(said)) + said + bytes(end))
    return path


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return laid_out(tmp_path / "models")


def test_a_source_is_told_with_what_is_only_guessed_and_what_cannot_be_trained(page: Page, tmp_path: Path) -> None:
    assert "Checkpoint · Stable Diffusion 1 · epsilon · 64 px · " in actions.source_about(page.host, str(MINIATURE))
    theirs = lora(tmp_path / "theirs.safetensors", 768, ss_network_module="networks.lora")
    said = actions.source_about(page.host, f' "{theirs}" ')
    assert "LoRA · Stable Diffusion 1 · rank 4 · fp16 · " in said and "Written by kohya&#x27;s scripts" in said
    assert "theirs.safetensors: this is a LoRA, not a whole model" in said
    assert "no such file" in actions.source_about(page.host, str(tmp_path / "nowhere.safetensors"))
    assert "fetched when you press Create" in actions.source_about(page.host, "someone/model")
    assert actions.source_about(page.host, " ") == ""


def test_a_lora_to_go_on_from_is_told_with_its_words_and_whether_it_fits(page: Page, tmp_path: Path) -> None:
    star = project.open_project(page.host.folders(), "star")
    assert "<p" not in start_view(page.host.folders(), "star", "lora.start_file")
    for width, fits in ((768, True), (2048, False)):
        file = lora(tmp_path / f"{width}.safetensors", width, ss_tag_frequency='{"a": {"sks dog": 3}}')
        project.write_settings(star, {**star.settings(), "lora.start_file": str(file)})
        said = start_view(page.host.folders(), "star", "lora.start_file")
        assert "rank 4" in said and "Trained on: sks dog" in said
        assert ("It is of SDXL, and this model is Stable Diffusion 1" in said) is not fits
    file.unlink()
    assert "no such file" in start_view(page.host.folders(), "star", "lora.start_file")


def test_no_file_is_opened_before_somebody_turns_to_it(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, read = list[Path](), checkpoint.read_header
    monkeypatch.setattr(checkpoint, "read_header", lambda path: opened.append(path) or read(path))  # type: ignore[func-returns-value]
    shutil.copy(MINIATURE, page.host.folders().models / "other.safetensors")
    page.open()
    assert set(opened) <= {project.open_project(page.host.folders(), "star").source}


def test_the_page_asks_the_hub_for_the_revision_that_it_shows(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    tab, asked = page.model_tab, list[str]()
    monkeypatch.setattr(queue, "submit", lambda job: asked.append(job.read()["revision"]))
    values = {**{one: one.value for one in tab.origin.controls.values()}, tab.name: "new"}
    for source, revision in (("a/b", " v2 "), ("a/b", ""), ("a/b", "v3")):
        tab._create({**values, tab.source: source, tab.revision: revision})
    assert asked == ["v2", "", "v3"]
    with pytest.raises(UserError, match=r"Revision: .* is no model of the hub"):
        tab._create({**values, tab.source: str(MINIATURE), tab.revision: "v2"})
