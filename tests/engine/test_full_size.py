"""A Stable Diffusion 1.5 of full size with random weights: one step of each method, exported and loaded by diffusers.

Left out unless asked for (python -m tests -m large): it takes 16 GB of memory and some minutes.
"""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from dreambooth.core.layout import SUBJECT_PICTURES
from dreambooth.engine.checkpoints import names
from dreambooth.engine.checkpoints.write import write_tensors
from dreambooth.engine.miniature.train import renamed
from tests.conftest import Run

pytestmark = pytest.mark.large


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A half-precision SD 1.5 in the original layout, 2.1 GB, with random weights."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8).half()
    tensors = renamed(unet, names.unet_keys(unet.state_dict(), levels=4, layers=2))
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
    tensors |= renamed(vae, names.vae_keys(vae.state_dict(), levels=4, layers=2))
    clip = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    tensors |= renamed(clip, names.clip_keys(clip.state_dict()))
    path = tmp_path_factory.mktemp("full") / "sd15.safetensors"
    write_tensors(path, tensors, {})
    return path


@pytest.mark.parametrize("method", ["lora", "full"])
def test_one_step_of_each_method(checkpoint: Path, tmp_path: Path, dreambooth: Run, method: str) -> None:
    data = tmp_path / "models"
    assert dreambooth("create", "big", "--source", checkpoint, "--data", data).answer["about"]["resolution"] == 512
    flags = {
        "concepts.0.instance_data_dir": SUBJECT_PICTURES,
        "concepts.0.instance_prompt": "a photo of sks star",
        "general.method": method,
        "general.resolution": 128,
        "intervals.num_train_epochs": 1,
        "batching.train_batch_size": 5,
        "batching.gradient_checkpointing": "on",
        "previews.count": 0,
    }
    said = dreambooth("train", "big", "--data", data, *[f"--{key}={value}" for key, value in flags.items()])
    assert said.code == 0, said.errors
    assert (said.answer["status"], said.answer["step"]) == ("done", 1)
    gc.collect()
    if method == "lora":
        state, alphas = StableDiffusionPipeline.lora_state_dict(said.answer["outputs"][0])
        assert len(state) == 2 * 16 * 12
        assert set(alphas.values()) == {16.0}
        return
    assert dreambooth("export", "big", "--to", tmp_path / "folder", "--data", data).code == 0
    pipeline = StableDiffusionPipeline.from_single_file(
        said.answer["outputs"][0], config=str(tmp_path / "folder"), local_files_only=True, safety_checker=None
    )
    exported = StableDiffusionPipeline.from_pretrained(str(tmp_path / "folder"), safety_checker=None)
    for part in ("unet", "vae", "text_encoder"):
        one, other = getattr(pipeline, part).state_dict(), getattr(exported, part).state_dict()
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name].float(), other[name].float()) for name in one)
