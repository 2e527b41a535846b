"""DreamBooth on the miniature, measured on its pictures: a subject that it has never seen is learned, the class is
kept with prior preservation and lost without it, and what the files hold is what training showed."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from dreambooth.core import project, settings
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.models import checkpoint
from dreambooth.core.project import Folders, Project
from dreambooth.engine import families, worker
from dreambooth.engine.drawing.sampling import make_scheduler
from dreambooth.engine.families import pipelines
from dreambooth.engine.generate import load
from dreambooth.engine.miniature import measure
from dreambooth.service import demo, launcher

WORDS = measure.Words(**demo.WORDS)
SHORT = {
    "intervals.num_train_epochs": 8,
    "intervals.save_preview_every": 2,
    "concepts.0.num_class_images_per": 1,
    "previews.steps": 8,
}


@dataclass
class Taught:
    """A finished run, with what it wrote and how its pictures measure."""

    made: Project
    job: Job
    output: Path

    @functools.cached_property
    def figures(self) -> dict[str, float]:
        return measure.measure(load(self.made, str(self.output)), words=WORDS)


@pytest.fixture(scope="session")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folders = Folders(tmp_path_factory.mktemp("taught"))
    return project.create(folders, "star", MINIATURE, {"concepts.0.instance_data_dir": str(SUBJECT_PICTURES)})


def teach(star: Project, method: str, **changes: Any) -> Taught:
    chosen = settings.parse({**star.settings(), **demo.METHODS[method], **changes})
    job = launcher.new_run(Folders(star.folder.parents[1]), star, chosen)
    assert worker.run(job) == "done"
    output = Path(next(event["path"] for event in job.events()[0] if event["event"] == "saved"))
    return Taught(star, job, output)


@pytest.fixture(scope="session")
def before() -> dict[str, float]:
    return measure.measure(families.load_file(MINIATURE), words=WORDS)


@pytest.fixture(scope="session")
def full(star: Project) -> Taught:
    return teach(star, "full fine-tuning")


@pytest.fixture(scope="session")
def short(star: Project) -> Taught:
    """Long enough for what its files are; not for what they draw."""
    return teach(star, "full fine-tuning", **SHORT)


@pytest.fixture(scope="session")
def short_lora(star: Project) -> Taught:
    return teach(star, "LoRA", **SHORT, **{"saving.half_model": False})


@pytest.fixture(scope="session")
def without_prior(star: Project) -> Taught:
    return teach(star, "full fine-tuning", **{"concepts.0.num_class_images_per": 0})


@pytest.fixture(scope="session")
def lora(star: Project) -> Taught:
    return teach(star, "LoRA")


@pytest.mark.thorough
def test_full_fine_tuning_learns_the_subject(before: dict[str, float], full: Taught) -> None:
    assert before["likeness"] < 0.2
    assert full.figures["likeness"] > before["likeness"] + 0.3
    assert full.figures["likeness_on_backgrounds"] > before["likeness_on_backgrounds"] + 0.15


@pytest.mark.thorough
def test_a_lora_learns_the_subject(before: dict[str, float], lora: Taught) -> None:
    assert lora.figures["likeness"] > before["likeness"] + 0.3
    assert lora.figures["likeness_on_backgrounds"] > before["likeness_on_backgrounds"] + 0.15


@pytest.mark.thorough
def test_the_class_keeps_its_variety(before: dict[str, float], full: Taught) -> None:
    assert full.figures["class_variety"] > 0.7 * before["class_variety"]


@pytest.mark.thorough
def test_without_prior_preservation_the_class_loses_it(full: Taught, without_prior: Taught) -> None:
    assert without_prior.figures["class_variety"] < 0.7 * full.figures["class_variety"]
    assert without_prior.figures["class_drift"] > full.figures["class_drift"] + 0.2


@pytest.mark.thorough
def test_the_subject_is_put_where_the_prompt_says(full: Taught) -> None:
    assert full.figures["prompt_following"] > 0.8


def test_the_checkpoint_keeps_what_was_not_trained_and_says_how_it_was_made(short: Taught) -> None:
    source, result = load_file(MINIATURE), load_file(short.output)
    assert source.keys() == result.keys()
    for name, tensor in source.items():
        assert name.startswith(("model.diffusion_model.", "cond_stage_model.")) or torch.equal(tensor, result[name]), (
            name
        )
    assert any(not torch.equal(source[n], result[n]) for n in source if n.startswith("model.diffusion_model."))
    about = checkpoint.describe(checkpoint.read_header(short.output))
    assert (about.precision, about.reason) == ("fp16", "")
    assert '"intervals.num_train_epochs"' in about.metadata["dreambooth.settings"]
    assert str(SUBJECT_PICTURES) not in about.metadata["dreambooth.settings"]


def test_a_result_can_be_taught_further(short: Taught, tmp_path: Path) -> None:
    assert project.create(Folders(tmp_path), "again", short.output).resolution == 64


def test_previews_grow_into_a_sheet(short: Taught) -> None:
    moments = {path.name.split("-")[0] for path in short.job.previews.glob("*.png")}
    assert moments == {"00000000", "00000010", "00000020", "00000030", "00000040"}
    with Image.open(short.job.folder / "previews.png") as sheet:
        assert sheet.width > 5 * 160


def test_the_lora_file_is_spelled_as_webuis_read_it(short_lora: Taught) -> None:
    tensors = load_file(short_lora.output)
    layers = {name.split(".")[0] for name in tensors}
    assert len([layer for layer in layers if layer.startswith("lora_unet_")]) == 16 * 12
    assert len([layer for layer in layers if layer.startswith("lora_te_text_model_encoder_layers_")]) == 4 * 6
    assert len(layers) == 16 * 12 + 4 * 6
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0" in layers
    for layer in layers:
        down, up = tensors[f"{layer}.lora_down.weight"], tensors[f"{layer}.lora_up.weight"]
        assert down.shape[0] == up.shape[1] == 16
        assert tensors[f"{layer}.alpha"].item() == 16.0
    assert checkpoint.read_header(short_lora.output).metadata["ss_network_dim"] == "16"


def preview(taught: Taught, images: int, prompt: int) -> np.ndarray:
    with Image.open(taught.job.previews / f"{images:08}-{prompt:02}-00.png") as picture:
        return np.asarray(picture, dtype=int)


@pytest.mark.parametrize(("weight", "images"), [(1.0, 40), (0.0, 0)])
def test_the_lora_in_diffusers_own_pipeline_draws_the_previews(short_lora: Taught, weight: float, images: int) -> None:
    """At weight 1 the last preview, at weight 0 the first, which is the base model's."""
    model = families.load_file(MINIATURE)
    pipeline = pipelines.pipeline(model)
    pipeline.scheduler = make_scheduler("dpm++", model)
    pipeline.load_lora_weights(str(short_lora.output.parent), weight_name=short_lora.output.name, adapter_name="star")
    pipeline.set_adapters("star", weight)
    pipeline.set_progress_bar_config(disable=True)
    chosen = settings.parse(short_lora.job.settings()).previews
    for number, prompt in enumerate(text.strip() for text in chosen.prompts.split(";")):
        drawn = pipeline(
            prompt,
            num_inference_steps=chosen.steps,
            guidance_scale=chosen.guidance_scale,
            width=64,
            height=64,
            generator=torch.Generator().manual_seed(chosen.seed),
        ).images[0]
        assert np.abs(np.asarray(drawn, dtype=int) - preview(short_lora, images, number)).max() <= 3


def test_loras_of_the_text_encoder_are_read_by_diffusers_too(star: Project) -> None:
    changes = {**SHORT, "intervals.num_train_epochs": 4, "tuning.text_encoder_ratio": 1.0, "previews.count": 0}
    taught = teach(star, "LoRA", **changes)
    layers = {name.split(".")[0] for name in load_file(taught.output)}
    text_layers = {layer for layer in layers if layer.startswith("lora_te_text_model_encoder_layers_")}
    assert len(text_layers) == 4 * 6
    state, alphas = StableDiffusionPipeline.lora_state_dict(str(taught.output.parent), weight_name=taught.output.name)
    assert len([name for name in state if name.startswith("text_encoder.")]) == 2 * 24
    assert alphas


def test_enough_class_pictures_are_never_made_again(star: Project, short: Taught) -> None:
    assert list(star.class_pictures.glob("**/*.png"))
    changes = {**SHORT, "intervals.num_train_epochs": 1, "previews.count": 0}
    again = teach(star, "full fine-tuning", **changes)
    assert not [event for event in again.job.events()[0] if event["event"] == "picture"]


@pytest.mark.parametrize("change", [{"batching.gradient_checkpointing": True}, {"tuning.mixed_precision": "no"}])
def test_what_only_saves_memory_changes_no_result(star: Project, change: dict[str, Any]) -> None:
    shorter = {**SHORT, "intervals.num_train_epochs": 2, "previews.count": 0, "saving.half_model": False}
    plain = load_file(teach(star, "full fine-tuning", **shorter).output)
    saving = load_file(teach(star, "full fine-tuning", **shorter, **change).output)
    assert all(torch.allclose(plain[name], saving[name], atol=1e-6) for name in plain)
