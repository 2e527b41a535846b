from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.models import checkpoint
from dreambooth.core.models.load_overrides import Origin
from tests.conftest import write_safetensors
from tests.core.test_hostile_files import tensor_program, zipped

UNET = "model.diffusion_model."
TO_K = UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
FIRST = UNET + "input_blocks.0.0.weight"
PARTS = {
    TO_K: ("F16", [2, 768], 3072),
    FIRST: ("F16", [1, 4, 1, 1], 8),
    "first_stage_model.x": ("F16", [1], 2),
}
CLIP = {"cond_stage_model.transformer.text_model.x": ("F16", [1], 2)}
HALF = ("F16", [1], 2)


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
    assert about(tmp_path, {**PARTS, "cond_stage_model.model.x": HALF}).family == "sd2"
    both = {"conditioner.embedders.0.transformer.x": HALF, "conditioner.embedders.1.model.x": HALF}
    assert about(tmp_path, {**PARTS, **both}).family == "sdxl"
    for width, family in ((768, "sd1"), (1024, "sd2"), (2048, "sdxl")):
        assert about(tmp_path, {TO_K: ("F16", [1, width], 2 * width)}).family == family


def test_what_a_person_chose_wins(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", {**PARTS, **CLIP}, {"modelspec.prediction_type": "epsilon"})
    chosen = Origin(prediction_type="v_prediction", zero_terminal_snr="on", resolution=640)
    found = checkpoint.describe(checkpoint.read_header(path), chosen)
    assert (found.prediction_type, found.known_by, found.zero_terminal_snr) == ("v_prediction", "chosen", True)
    assert found.resolution == 640
    assert checkpoint.describe(checkpoint.read_header(path), Origin(family="sd2")).reason == (
        "it is Stable Diffusion 1 and not Stable Diffusion 2; name another file, or leave its family at auto"
    )
    without = write_safetensors(tmp_path / "y.safetensors", PARTS)
    assert "no text encoder" in checkpoint.describe(checkpoint.read_header(without), Origin(family="sd2")).reason
    assert "no EMA" in checkpoint.describe(checkpoint.read_header(path), Origin(weights="ema")).reason


SD2 = {TO_K: ("F16", [2, 1024], 4096), FIRST: ("F16", [1, 4, 1, 1], 8), "cond_stage_model.model.x": HALF}


@pytest.mark.parametrize(
    ("name", "extra", "metadata", "yaml", "found"),
    [
        ("x", {}, {}, "", ("epsilon", "assumed", 512)),
        ("x", {}, {"modelspec.prediction_type": "v"}, "", ("v_prediction", "metadata", 768)),
        ("x", {"v_pred": ("F32", [0], 0)}, {}, "", ("v_prediction", "markers", 768)),
        ("x", {"v_pred": ("F32", [0], 0)}, {"modelspec.prediction_type": "eps"}, "", ("v_prediction", "markers", 768)),
        ("x", {}, {}, 'model:\n  params:\n    parameterization: "v"\n', ("v_prediction", "yaml", 768)),
        ("x-768-v", {}, {}, 'model: {"params": {"parameterization": "eps"}}', ("epsilon", "yaml", 512)),
        ("v2-1_768-ema-pruned", {}, {}, "", ("v_prediction", "file name", 768)),
        ("my-vpred-model", {}, {}, "", ("v_prediction", "file name", 768)),
    ],
)
def test_what_the_weights_do_not_say_is_looked_for_elsewhere(
    tmp_path: Path, name: str, extra: Any, metadata: dict[str, str], yaml: str, found: tuple[str, str, int]
) -> None:
    path = write_safetensors(tmp_path / f"{name}.safetensors", {**SD2, **extra}, metadata)
    if yaml:
        path.with_suffix(".yaml").write_text(yaml)
    seen = checkpoint.describe(checkpoint.read_header(path))
    assert (seen.prediction_type, seen.known_by, seen.resolution) == found


SDXL = {
    TO_K: ("F16", [2, 2048], 8192),
    FIRST: ("F16", [1, 4, 1, 1], 8),
    "first_stage_model.x": HALF,
    "conditioner.embedders.0.transformer.x": HALF,
    "conditioner.embedders.1.model.x": HALF,
}
DENOISER = """model:
  target: sgm.models.diffusion.DiffusionEngine
  params:
    denoiser_config:
      target: sgm.modules.diffusionmodules.denoiser.DiscreteDenoiser
      params:
        num_idx: 1000
        weighting_config:
          target: sgm.modules.diffusionmodules.denoiser_weighting.EpsWeighting
        scaling_config: # the usual one is EpsScaling
          {scaling}
        discretization_config:
          target: sgm.modules.diffusionmodules.discretizer.LegacyDDPMDiscretization
"""
SCALING = "target: sgm.modules.diffusionmodules.denoiser_scaling."


@pytest.mark.parametrize(
    ("name", "yaml", "found"),
    [
        ("x", DENOISER.format(scaling=f"{SCALING}VScaling"), ("v_prediction", "yaml")),
        ("x", DENOISER.format(scaling=f"'{SCALING}VScaling'".replace(": ", "': '")), ("v_prediction", "yaml")),
        ("x_vpred", DENOISER.format(scaling=f"{SCALING}EpsScaling"), ("epsilon", "yaml")),
        ("x", "model:\n  params:\n    parameterization: v\n", ("v_prediction", "yaml")),
        ("x_vpred", "model:\n  params:\n    scale_factor: 0.13025\n", ("v_prediction", "file name")),
        ("x_vpred", "model:\n  params:\n    # parameterization: eps\n", ("v_prediction", "file name")),
        ("x", DENOISER.format(scaling=""), ("epsilon", "the family")),
        ("x", DENOISER.format(scaling=f"{SCALING}EDMScaling"), ("EDMScaling", "yaml")),
        (
            "x",
            DENOISER.format(scaling=f"params: {{sigma_data: 0.5}}\n          {SCALING}EDMScaling"),
            ("EDMScaling", "yaml"),
        ),
    ],
)
def test_an_sdxl_yaml_names_the_scaling_of_its_denoiser(
    tmp_path: Path, name: str, yaml: str, found: tuple[str, str]
) -> None:
    """As A1111 and Forge read it; without one they go by other marks."""
    path = write_safetensors(tmp_path / f"{name}.safetensors", SDXL)
    path.with_suffix(".yaml").write_text(yaml)
    seen = checkpoint.describe(checkpoint.read_header(path))
    assert (seen.family, seen.prediction_type, seen.known_by) == ("sdxl", *found)
    assert ("it predicts" in seen.reason) == (found[0] == "EDMScaling")


@pytest.mark.parametrize(
    ("tensors", "teller"),
    [
        ({f"{UNET}x.weight": ("F8_E4M3", [4], 4), f"{UNET}x.scale_weight": ("F32", [], 4)}, "x.scale_weight"),
        ({f"{UNET}x.weight": ("F8_E4M3", [4], 4), f"{UNET}x.weight_scale": ("F32", [], 4)}, "x.weight_scale"),
        ({f"{UNET}x.weight": ("I8", [4], 4)}, "x.weight"),
        ({f"{UNET}x.weight": ("U8", [2, 1], 2), f"{UNET}x.weight.absmax": ("F32", [1], 4)}, "x.weight.absmax"),
        ({f"{UNET}x.weight": ("F8_E4M3", [4], 4)}, ""),
        ({"cond_stage_model.transformer.text_model.embeddings.position_ids": ("I64", [1], 8)}, ""),
    ],
)
def test_weights_that_are_kept_as_other_numbers_are_not_taken_for_what_they_seem(
    tmp_path: Path, tensors: dict[str, tuple[str, list[int], int]], teller: str
) -> None:
    """As ComfyUI and bitsandbytes write them; those in 8 bits that nothing scales are what they are."""
    reason = about(tmp_path, {**PARTS, **CLIP, **tensors}).reason
    said = f"its weights are quantized, as {UNET}{teller} tells, and cannot be read here; get it in fp16"
    assert reason == (said if teller else "")


@pytest.mark.parametrize("mark", ["edm_mean", "edm_vpred.sigma_max"])
def test_a_file_of_continuous_noise_levels_is_not_taken_for_one_of_timesteps(tmp_path: Path, mark: str) -> None:
    """Playground 2.5 and CosXL, which WebUIs tell by these; saved by ComfyUI the latter has v_pred, too."""
    seen = about(tmp_path, {**SDXL, mark: HALF, "v_pred": ("F32", [0], 0)})
    assert (seen.family, seen.prediction_type, seen.known_by) == ("sdxl", "edm", "markers")
    assert seen.reason == "it predicts edm; models that predict epsilon or v can be trained"


@pytest.mark.parametrize(
    ("scheduler", "found"),
    [
        ({"_class_name": "EDMDPMSolverMultistepScheduler", "prediction_type": "epsilon"}, ("edm", "scheduler")),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, ("flow", "scheduler")),
        ({"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon"}, ("epsilon", "scheduler")),
        ({"_class_name": ["EDM"]}, ("epsilon", "the family")),
    ],
)
def test_a_folder_whose_scheduler_has_no_timesteps_cannot_be_trained_from(
    tmp_path: Path, scheduler: dict[str, Any], found: tuple[str, str]
) -> None:
    for place, content in (("model_index", {}), ("scheduler/scheduler_config", scheduler)):
        file = tmp_path / f"{place}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))
    for part in ("unet", "text_encoder_2"):
        (tmp_path / part).mkdir()
        write_safetensors(tmp_path / part / "model.safetensors", {"x": HALF})
    seen = checkpoint.describe(checkpoint.read_header(tmp_path))
    assert (seen.prediction_type, seen.known_by) == found


@pytest.mark.parametrize(("width", "family"), [(768, "sd1"), (1024, "sd2"), (2048, "sdxl")])
def test_the_family_of_a_lora_of_the_first_diffusers_is_seen(tmp_path: Path, width: int, family: str) -> None:
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora"
    tensors = {f"unet.{layer}.down.weight": ("F16", [4, width], 8 * width), f"{layer}.up.weight": ("F16", [2, 4], 16)}
    seen = about(tmp_path, tensors)
    assert (seen.kind, seen.family) == ("lora", family)


@pytest.mark.parametrize(
    ("said", "family"),
    [
        ("sd_v1", "sd1"),
        ("sd_v2_v", "sd2"),
        ("sdxl_base_v1-0", "sdxl"),
        ("sdxl_base_v0-9", "sdxl"),
        ("flux1", "unknown"),
    ],
)
def test_the_family_of_a_lora_of_the_text_encoder_alone_is_what_its_trainer_said(
    tmp_path: Path, said: str, family: str
) -> None:
    tensors = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": ("F16", [1, 768], 2 * 768)}
    assert about(tmp_path, tensors, {"ss_base_model_version": said}).family == family


SITE = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"


@pytest.mark.parametrize(
    "shapes",
    [
        {"lora_down.weight": [4, 1024], "lora_up.weight": [8, 4], "dora_scale": [1, 1024]},
        {"hada_w1_a": [8, 4], "hada_w1_b": [4, 1024], "hada_w2_a": [8, 4], "hada_w2_b": [4, 1024]},
        {"lokr_w1": [2, 16], "lokr_w2": [4, 64]},
        {"lokr_w1": [2, 16], "lokr_w2_a": [4, 3], "lokr_w2_b": [3, 64]},
        {"lokr_w1_a": [2, 3], "lokr_w1_b": [3, 16], "lokr_w2_a": [4, 3], "lokr_w2_b": [3, 64]},
    ],
)
def test_the_family_of_each_kind_of_lora_is_seen(tmp_path: Path, shapes: dict[str, list[int]]) -> None:
    sizes = {f"{SITE}.{name}": ("F16", shape, 2 * shape[0] * shape[1]) for name, shape in shapes.items()}
    seen = checkpoint.describe(checkpoint.read_header(write_safetensors(tmp_path / "x.safetensors", sizes)))
    assert (seen.kind, seen.family) == ("lora", "sd2")


@pytest.mark.parametrize(
    ("version", "family"),
    [("sd_v1", "sd1"), ("sd_v1_v", "sd1"), ("sd_v2", "sd2"), ("sd_v2_v", "sd2"), ("sdxl_base_v1-0", "sdxl")],
)
def test_a_lora_of_the_text_encoder_alone_is_of_the_family_that_its_trainer_names(
    tmp_path: Path, version: str, family: str
) -> None:
    """kohya's scripts write _v behind the version of a model that predicts v."""
    layer = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": ("F16", [4, 8], 64)}
    path = write_safetensors(tmp_path / "x.safetensors", layer, {"ss_base_model_version": version})
    assert checkpoint.describe(checkpoint.read_header(path)).family == family


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 4000), st.binary(min_size=1, max_size=8))
def test_no_damage_to_the_header_ends_in_a_traceback(tmp_path: Path, at: int, junk: bytes) -> None:
    path = tmp_path / "junk.safetensors"
    data = bytearray(MINIATURE.read_bytes()[:200_000])
    data[at : at + len(junk)] = junk
    path.write_bytes(data)
    with pytest.raises(UserError):
        checkpoint.read_header(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 700), st.binary(min_size=1, max_size=6))
def test_no_damage_to_a_pickle_ends_in_a_traceback(tmp_path: Path, at: int, junk: bytes) -> None:
    path = tmp_path / "junk.ckpt"
    data = bytearray(zipped(tensor_program(b"FloatStorage", 0, (2, 2), (2, 1))))
    data[at : at + len(junk)] = junk
    path.write_bytes(data)
    with contextlib.suppress(UserError):
        checkpoint.describe(checkpoint.read_header(path))


def test_the_fingerprint_sees_changed_weights(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "a.safetensors", {"x": ("F32", [100], 400)})
    before = checkpoint.fingerprint(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert checkpoint.fingerprint(path) != before
    assert json.dumps(before)
