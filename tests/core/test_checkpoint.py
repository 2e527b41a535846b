from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreambooth.core import checkpoint
from dreambooth.core.errors import UserError
from dreambooth.core.layout import MINIATURE
from tests.conftest import write_safetensors

UNET = "model.diffusion_model."
TO_K = UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
PARTS = {TO_K: ("F16", [2, 768], 3072), "first_stage_model.x": ("F16", [1], 2)}
CLIP = {"cond_stage_model.transformer.text_model.x": ("F16", [1], 2)}


def about(
    path: Path, tensors: dict[str, tuple[str, list[int], int]], metadata: dict[str, str] | None = None
) -> checkpoint.About:
    return checkpoint.describe(checkpoint.read_header(write_safetensors(path / "x.safetensors", tensors, metadata)))


def test_the_miniature_is_what_it_says() -> None:
    found = checkpoint.describe(checkpoint.read_header(MINIATURE))
    assert (found.kind, found.family, found.precision, found.resolution) == ("checkpoint", "sd1", "fp16", 64)
    assert found.has_unet and found.has_vae and found.has_text_encoder and not found.has_ema
    assert found.bytes == MINIATURE.stat().st_size <= 16_000_000
    assert found.reason == ""


def test_families_are_told_apart(tmp_path: Path) -> None:
    assert about(tmp_path, {**PARTS, **CLIP}).family == "sd1"
    assert about(tmp_path, {**PARTS, "cond_stage_model.model.x": ("F16", [1], 2)}).family == "sd2"
    assert about(tmp_path, {**PARTS, "conditioner.embedders.0.x": ("F16", [1], 2)}).family == "sdxl"


def test_what_cannot_be_trained_says_why(tmp_path: Path) -> None:
    first = UNET + "input_blocks.0.0.weight"
    assert "inpainting" in about(tmp_path, {**PARTS, **CLIP, first: ("F16", [1, 9, 1, 1], 18)}).reason
    assert "SDXL" in about(tmp_path, {**PARTS, "conditioner.embedders.0.x": ("F16", [1], 2)}).reason
    assert "no text encoder" in about(tmp_path, PARTS).reason
    assert "no VAE" in about(tmp_path, {TO_K: PARTS[TO_K], **CLIP}).reason
    assert "v_prediction" in about(tmp_path, {**PARTS, **CLIP}, {"modelspec.prediction_type": "v_prediction"}).reason
    assert "LoRA" in about(tmp_path, {"lora_unet_x.lora_down.weight": ("F16", [1], 2)}).reason
    assert "no Stable Diffusion model" in about(tmp_path, {"x": ("F16", [1], 2)}).reason


def header_of(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"not a model at all, just some words",
        (2**63).to_bytes(8, "little") + b"{}",
        header_of(b"{"),
        header_of(b"[]"),
        header_of(b"\xff\xfe"),
        header_of(b'{"a": 1}'),
        header_of(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}') + bytes(8),
        header_of(b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}') + bytes(8),
        header_of(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}') + bytes(8),
        header_of(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}') + bytes(3),
        header_of(b'{"a": ' + b"[" * 100_000),
        (500).to_bytes(8, "little") + b"{}",
    ],
)
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"broken\.safetensors: .*\.$") as caught:
        checkpoint.read_header(path)
    assert len(caught.value.problems) == 1


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 4000), st.binary(min_size=1, max_size=8))
def test_no_damage_to_the_header_ends_in_a_traceback(tmp_path: Path, at: int, junk: bytes) -> None:
    path = tmp_path / "junk.safetensors"
    data = bytearray(MINIATURE.read_bytes()[:200_000])
    data[at : at + len(junk)] = junk
    path.write_bytes(data)
    with pytest.raises(UserError):
        checkpoint.read_header(path)


def test_folders_and_pickles_get_their_own_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="folder"):
        checkpoint.read_header(tmp_path)
    (tmp_path / "x.ckpt").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"convert it to \.safetensors"):
        checkpoint.read_header(tmp_path / "x.ckpt")


def test_the_fingerprint_sees_changed_weights(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "a.safetensors", {"x": ("F32", [100], 400)})
    before = checkpoint.fingerprint(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert checkpoint.fingerprint(path) != before
    assert json.dumps(before)
