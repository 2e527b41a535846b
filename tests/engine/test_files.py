"""Reading and writing model files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth.core import checkpoint
from dreambooth.core.errors import UserError
from dreambooth.core.layout import MINIATURE
from dreambooth.engine.checkpoints.write import free_name, write_checkpoint, write_tensors
from dreambooth.engine.families import sd1


@pytest.fixture(scope="module")
def model() -> sd1.Sd1:
    return sd1.load(MINIATURE, 64)


def originals(model: sd1.Sd1) -> dict[str, torch.Tensor]:
    return {theirs: model.unet.get_parameter(ours) for ours, theirs in model.unet_keys().items()}


def test_there_and_back_changes_no_bit(tmp_path: Path, model: sd1.Sd1) -> None:
    out = tmp_path / "out.safetensors"
    write_checkpoint(out, MINIATURE, originals(model), {"a": "b"}, half=True)
    before, after = load_file(MINIATURE), load_file(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    assert checkpoint.read_header(out).metadata == {"a": "b"}


def test_full_precision_keeps_what_half_would_round(tmp_path: Path, model: sd1.Sd1) -> None:
    name = "model.diffusion_model.out.2.bias"
    trained = {**originals(model), name: torch.full((4,), 1 / 3)}
    write_checkpoint(tmp_path / "x.safetensors", MINIATURE, trained, {}, half=False)
    assert torch.equal(load_file(tmp_path / "x.safetensors")[name], torch.full((4,), 1 / 3))


def test_a_merge_that_lost_a_level_of_the_text_encoders_names_is_read_and_written(
    tmp_path: Path, model: sd1.Sd1
) -> None:
    lost = {name.replace("transformer.text_model.", "transformer."): t for name, t in load_file(MINIATURE).items()}
    lost["model_ema.decay"] = torch.ones(1)
    lost["stray.key"] = torch.ones(2, dtype=torch.int64)
    save_file(lost, tmp_path / "merge.safetensors")
    again = sd1.load(tmp_path / "merge.safetensors", 64)
    ours, theirs = model.text_encoder.state_dict(), again.text_encoder.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    trained = {theirs: model.text_encoder.get_parameter(ours) + 1 for ours, theirs in model.text_encoder_keys().items()}
    write_checkpoint(tmp_path / "out.safetensors", tmp_path / "merge.safetensors", trained, {}, half=True)
    written = load_file(tmp_path / "out.safetensors")
    assert written.keys() == lost.keys() - {"model_ema.decay"}
    bias = "cond_stage_model.transformer.final_layer_norm.bias"
    assert torch.equal(written[bias], (lost[bias].float() + 1).half())
    assert torch.equal(written["stray.key"], lost["stray.key"])


def test_another_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(UserError, match="not overwritten"):
        write_tensors(path, {"x": torch.ones(1)}, {})
    assert path.read_bytes() == b"precious"
    assert [p.name for p in tmp_path.iterdir()] == ["mine.safetensors"]
    assert free_name(tmp_path, "mine").name == "mine-2.safetensors"


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dreambooth.engine.checkpoints.write.os.fsync", fail)
    with pytest.raises(UserError, match="No space left"):
        write_tensors(tmp_path / "x.safetensors", {"x": torch.ones(1)}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("model.diffusion_model.out.2.bias"), "out.2.bias are missing"),
        (lambda t: t.update({"model.diffusion_model.out.2.bias": torch.ones(5).half()}), "instead of"),
        (lambda t: t["model.diffusion_model.out.2.bias"].fill_(float("nan")), "not finite"),
    ],
)
def test_damaged_weights_are_named(tmp_path: Path, change: object, said: str) -> None:
    tensors = {name: t.clone() for name, t in load_file(MINIATURE).items()}
    change(tensors)  # type: ignore[operator]
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=said):
        sd1.load(tmp_path / "x.safetensors", 64)


def test_diffusers_loads_the_miniature_and_draws_the_same(tmp_path: Path, model: sd1.Sd1) -> None:
    """The file, through diffusers' own single-file loader, given its configuration folder."""
    import numpy as np
    from diffusers import StableDiffusionPipeline

    from dreambooth.engine.export import _diffusers_folder
    from dreambooth.engine.sampling import draw, make_scheduler
    from dreambooth.engine.sampling_choice import Sampling

    _diffusers_folder(model, tmp_path / "folder")
    for part in ("unet", "vae", "text_encoder"):  # only the configuration is to come from the folder
        for weights in (tmp_path / "folder" / part).glob("*.safetensors"):
            weights.unlink()
    pipeline = StableDiffusionPipeline.from_single_file(
        str(MINIATURE), config=str(tmp_path / "folder"), local_files_only=True, safety_checker=None
    )
    pipeline.scheduler = make_scheduler("ddim")
    pipeline.set_progress_bar_config(disable=True)
    prompt = "a photo of a red heart on a white background"
    theirs = pipeline(
        prompt,
        num_inference_steps=10,
        guidance_scale=5.0,
        width=64,
        height=64,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    ours = draw(model, [prompt], [3], Sampling(64, 64, 10, 5.0, scheduler="ddim"))[0]
    assert np.abs(np.asarray(theirs, int) - np.asarray(ours, int)).max() <= 2
