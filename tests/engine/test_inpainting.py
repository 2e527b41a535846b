"""Inpainting models: what they see while they learn, that they learn to use it, and all else that a plain one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from dreambooth.core import forecast, picture_files, project, settings
from dreambooth.core.buckets import Bucket
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.models import checkpoint
from dreambooth.core.project import Folders, Project
from dreambooth.engine import families, generate, plan, worker
from dreambooth.engine.checkpoints import lora
from dreambooth.engine.checkpoints.source import open_model, open_source
from dreambooth.engine.data import cache, cropping, decoding, inpainting_latents, inpainting_masks, pictures
from dreambooth.engine.data.latent_store import Store
from dreambooth.engine.data.pictures import Example
from dreambooth.engine.drawing.sampling import Sampling, draw, make_scheduler
from dreambooth.engine.families import inpainting_inputs
from dreambooth.engine.families.model import Model
from dreambooth.engine.prompts.tokens import Meter
from dreambooth.engine.training import objective, traced_step
from dreambooth.service import launcher, short_jobs
from tests.engine import tiny
from tests.engine.runs import LORA, SHORT, exported, folders, new_run, output, same, saved, tiny_project, told, train

PROMPT = "a photo of a red star"
CLASS = {
    "concepts.0.class_prompt": "a photo of a star",
    "concepts.0.num_class_images_per": 1,
    "concepts.0.class_infer_steps": 1,
}
CHECKPOINTED = {"batching.gradient_checkpointing": True}
BUCKET = Bucket(64, 64)
CUT = cropping.centred((64, 64), BUCKET)


@pytest.fixture(scope="module", params=tiny.INPAINTING)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def made(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("made"), kind)


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("sd1"), "sd1-inpainting")


@pytest.fixture(scope="module")
def widened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature as an inpainting model that does not yet look at what it sees."""
    return tiny.write_inpainting(tmp_path_factory.mktemp("widened") / "widened.safetensors", MINIATURE)


def spot(box: tuple[int, int, int, int], size: tuple[int, int] = (64, 64)) -> Image.Image:
    grey = Image.new("L", size, 0)
    grey.paste(255, box)
    return grey


# ---- masks


def test_masks_follow_from_seed_name_and_variant_alone() -> None:
    first = inpainting_masks.masks("a.png", 0, CUT, None, 4, 7)
    again = inpainting_masks.masks("a.png", 0, CUT, None, 8, 7)
    assert all((one == other).all() for one, other in zip(first, again)), "whatever others there are"
    assert len({mask.tobytes() for mask in again}) == 8
    for name, variant, seed in (("b.png", 0, 7), ("a.png", 1, 7), ("a.png", 0, 8)):
        assert (inpainting_masks.masks(name, variant, CUT, None, 1, seed)[0] != first[0]).any()


def test_masks_are_large_and_leave_something() -> None:
    cut = cropping.centred((128, 64), Bucket(128, 64))
    shares = [
        mask.mean()
        for n in range(100)
        for mask in inpainting_masks.masks(f"{n}.png", 0, cut, None, 2, 0)
        if mask.shape == (64, 128)
    ]
    assert len(shares) == 200
    assert 0.1 <= min(shares) < 0.2 and 0.7 < max(shares) <= 0.8
    assert 0.25 < np.mean(shares) < 0.55


def test_a_pictures_own_mask_is_used_as_it_is_grown_and_beside_others() -> None:
    own = spot((16, 24, 40, 48))
    found = inpainting_masks.masks("a.png", 0, CUT, own, 8, 0)
    assert (found[0] == (np.asarray(own) > 0)).all()
    for grown in found[2::2]:
        assert grown[found[0]].all() and grown.sum() > found[0].sum()
    assert not any((mask == found[0]).all() for mask in found[1:])
    mirrored = cropping.Crop(BUCKET, (0, 0, 64, 64), (64, 64), mirrored=True)
    assert (inpainting_masks.masks("a.png", 0, mirrored, own, 1, 0)[0] == found[0][:, ::-1]).all()


def test_an_own_mask_that_the_crop_cuts_off_gives_way_to_others() -> None:
    nothing = inpainting_masks.masks("a.png", 0, CUT, spot((0, 0, 0, 0)), 2, 0)
    assert all(0.1 <= mask.mean() <= 0.8 for mask in nothing)


@pytest.mark.parametrize(("variants", "each"), [(1, 8), (2, 4), (3, 3), (4, 2), (100, 2)])
def test_variants_share_a_pictures_masks(variants: int, each: int) -> None:
    assert inpainting_masks.count(variants) == each


# ---- what is seen


def examples(folder: Path, **changes: Any) -> list[Example]:
    flat = {"concepts.0.instance_data_dir": str(folder), "concepts.0.instance_prompt": "x", **changes}
    chosen = settings.parse(flat)
    gathered = pictures.gather(chosen.concepts)
    return [one for variants in pictures.examples(gathered, chosen, 64) for one in variants]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, path in enumerate(picture_files.find(SUBJECT_PICTURES)[:3]):
        Image.open(path).convert("RGB").resize((64, 64)).save(folder / f"{number}.png")
    spot((16, 16, 48, 40)).save(folder / "1-mask.png")
    return folder


def seen(model: Model, some: list[Example], many: int = 2, store: Store | None = None) -> cache.Encoded:
    encoded = cache.encode(model, some, ["x"], lambda done: None, store)
    inpainting_latents.add(model, encoded, some, many, 0, lambda done: None, store)
    return encoded


def left(encoded: cache.Encoded) -> Tensor:
    assert encoded.surroundings and encoded.surroundings.masked
    return encoded.surroundings.masked[0]


def test_it_sees_the_mask_and_the_latents_of_what_that_leaves(widened: Path, photos: Path) -> None:
    model = families.load_file(widened)
    some = examples(photos, **{"pictures.hflip": True, "pictures.variants": 2})
    found = left(seen(model, some))
    assert found.shape == (6, 2, 5, 8, 8)
    for n, example in enumerate(some):
        own = spot((16, 16, 48, 40)) if n in (2, 3) else None
        picture = cropping.apply(decoding.decode(example.picture.path), example.cut)
        for m, mask in enumerate(inpainting_masks.masks(example.picture.path.name, n % 2, example.cut, own, 2, 0)):
            hidden = np.where(mask[..., None], 127.5, np.asarray(picture, dtype=np.float32))
            pixels = torch.from_numpy(hidden).permute(2, 0, 1)[None].float() / 127.5 - 1
            assert torch.allclose(found[n, m, 1:], model.encode_pictures(pixels)[0][0], atol=1e-4)
            assert torch.equal(found[n, m, 0], torch.from_numpy(mask[::8, ::8]).float())


def test_a_quarter_of_the_time_it_sees_nothing(widened: Path, photos: Path) -> None:
    model = families.load_file(widened)
    encoded = seen(model, examples(photos), many=3)
    nothing = inpainting_inputs.whole_picture_inputs(model, 64, 64)
    assert nothing is not None and nothing[0, 0].min() == 1
    assert torch.equal(nothing[:, 1:], model.encode_pictures(torch.zeros(1, 3, 64, 64))[0])
    torch.manual_seed(0)
    drawn = encoded.around(torch.ones(1200, dtype=torch.long))
    assert drawn is not None
    candidates = [*left(encoded)[1], nothing[0]]
    shares = [sum(torch.equal(one, wanted) for one in drawn) / 1200 for wanted in candidates]
    assert shares == pytest.approx([0.25] * 4, abs=0.05)


def test_what_is_hidden_is_encoded_once_and_kept(
    widened: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, some = families.load_file(widened), examples(photos)
    first = left(seen(model, some, store=Store(tmp_path / "kept", model)))
    counts: list[int] = []
    real = model.encode_pictures
    monkeypatch.setattr(model, "encode_pictures", lambda pixels: (counts.append(len(pixels)), real(pixels))[1])
    assert torch.equal(left(seen(model, some, store=Store(tmp_path / "kept", model))), first)
    assert counts == []
    spot((0, 0, 32, 64)).save(photos / "1-mask.png")
    again = left(seen(model, some, store=Store(tmp_path / "kept", model)))
    assert counts == [1], "what its own mask hides now"
    assert torch.equal(again[0], first[0]) and torch.equal(again[1, 1], first[1, 1])
    assert not torch.equal(again[1, 0], first[1, 0])


def test_many_stay_in_the_computers_memory(widened: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, some = families.load_file(widened), examples(photos)
    drawn = []
    for most in (2**30, 100):
        monkeypatch.setattr(cache, "MOST_ON_DEVICE", most)
        encoded = seen(model, some)
        torch.manual_seed(1)
        drawn.append(encoded.around(torch.tensor([0, 2, 1, 2])))
    assert torch.equal(drawn[0], drawn[1])


def test_a_mask_that_will_not_do_is_named_before_anything_begins(
    sd1: Project, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.setup, "load", lambda *given: pytest.fail("the model was read"))
    spot((0, 0, 8, 8), (40, 96)).save(photos / "1-mask.png")
    with pytest.raises(UserError, match=r"1-mask.png: this mask has 40 x 96 pixels and its picture 64 x 64"):
        train(sd1, **{"concepts.0.instance_data_dir": str(photos)})


# ---- learning


def colours(seed: int) -> Image.Image:
    """A picture that cannot be known but by looking at it."""
    coarse = np.random.default_rng(seed).integers(0, 255, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC)


@pytest.mark.thorough
def test_it_learns_to_use_what_it_sees(widened: Path, tmp_path: Path) -> None:
    """At first what is around a hole says nothing to it; afterwards it predicts that part of new pictures by it."""
    (tmp_path / "photos").mkdir()
    for number in range(10):
        colours(number).save(tmp_path / "photos" / f"{number}.png")
    star = project.create(Folders(tmp_path), "star", widened)
    before = errors(families.load(open_model(star)))
    changes = {
        "concepts.0.instance_data_dir": str(tmp_path / "photos"),
        "concepts.0.instance_prompt": "x",
        "batching.train_batch_size": 2,
        "intervals.num_train_epochs": 100,
        "intervals.max_train_steps": 24,
        "objective.timestep_min": 650,
        "objective.timestep_max": 750,
    }
    after = errors(families.load(open_source(saved(train(star, **changes))[-1], star.reading)))
    assert before["seen"] == pytest.approx(before["not seen"], rel=1e-3)
    assert after["seen"] < 0.6 * after["not seen"], (before, after)
    assert after["seen"] < 0.5 * before["seen"], (before, after)


@torch.no_grad()
def errors(model: Model) -> dict[str, float]:
    """How wrong pictures that were not learned are predicted outside of a hole, where that is seen or not."""
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:48, 16:48] = 1
    t, outside, text = torch.tensor([700]), 1 - inpainting_inputs.latent_masks(mask), model.encode_text(["x"])
    alpha_bar, nothing = (
        make_scheduler("ddim", model).alphas_cumprod[t],
        inpainting_inputs.whole_picture_inputs(model, 64, 64),
    )
    found: dict[str, list[float]] = {"seen": [], "not seen": []}
    for number in range(100, 110):
        pixels = cache.to_tensor(colours(number))[None]
        x_0, _ = model.encode_pictures(pixels)
        eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(number))
        x_t = objective.add_noise(x_0, eps, alpha_bar)
        given = torch.cat(
            [inpainting_inputs.latent_masks(mask), inpainting_inputs.encode_masked(model, pixels, mask)], 1
        )
        for name, some in (("seen", given), ("not seen", nothing)):
            predicted = model.denoise(inpainting_inputs.concatenate(x_t, some), t, text, torch.zeros(1, 6))
            found[name].append(((predicted - eps).square() * outside).sum().item())
    return {name: float(np.mean(some)) for name, some in found.items()}


def test_pausing_changes_no_bit(sd1: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {
        **CLASS,
        "pictures.hflip": True,
        "pictures.variants": 2,
        "batching.train_batch_size": 1,
        "intervals.max_train_steps": 4,
    }
    whole = train(sd1, **changes)
    stopped = new_run(sd1, **changes)
    monkeypatch.setattr(worker.RunHooks, "requests", lambda hooks: {"pause"} if hooks.session.step == 2 else set())
    assert worker.run(stopped) == "paused"
    monkeypatch.undo()
    assert worker.run(stopped) == "done"
    assert same(output(whole), output(stopped))
    assert whole.progress()["prior_loss"] > 0


@pytest.mark.thorough
def test_steps_from_records_change_no_bit(sd1: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """With pictures of the class, whose part is what the base model predicts of the same masks."""
    monkeypatch.setattr(traced_step, "MIN_REMAINING_BATCHES", 1)
    changes = {**RUNS["prediction"], "intervals.max_train_steps": 7, "batching.train_batch_size": 1}
    again: list[Any] = []
    real = traced_step.TracedStep._replay
    monkeypatch.setattr(traced_step.TracedStep, "_replay", lambda *given: (again.append(given), real(*given))[1])
    recorded = output(train(sd1, **changes))
    assert len(again) >= 3
    again.clear()
    assert same(recorded, output(train(sd1, **changes, **{"tuning.trace_steps": False})))
    assert not again


RUNS: dict[str, dict[str, Any]] = {
    **{kind: {**LORA, "lora.kind": kind, "lora.layers": "convolutions"} for kind in ("lora", "dora", "oft")},
    "masked": {**LORA, "objective.masked": True, "objective.unmasked_weight": 0.0},
    "prediction": {**LORA, "concepts.0.class_mode": "prediction", "concepts.0.class_prompt": "a photo of a star"},
    "streamed": {"memory.unet_weights": "streamed", "memory.step_in_backward": True, **CHECKPOINTED},
    "nf4": {**LORA, "memory.unet_weights": "nf4", **CHECKPOINTED},
    "previews": {**LORA, "previews.count": 1, "previews.steps": 1, "pictures.cache_on_disk": False},
}


@pytest.mark.parametrize("name", RUNS)
def test_every_kind_of_run(sd1: Project, photos: Path, name: str) -> None:
    """What was learned is there, and a LoRA has nothing for the first convolution: it goes onto plain models too."""
    changes = {"concepts.0.instance_data_dir": str(photos), "batching.train_batch_size": 3, **RUNS[name]}
    job = train(sd1, **changes)
    result = output(job)
    assert all(tensor.isfinite().all() for tensor in result.values())
    if "general.method" in changes:
        layers = lora.read(saved(job)[-1], open_model(sd1).tensors, "sd1")
        assert layers and "unet/conv_in.weight" not in layers
        assert any(
            tensor.abs().max() > 0 for name, tensor in result.items() if "up" in name or "w1" in name or "oft" in name
        )
    else:
        before = load_file(sd1.source)[tiny.FIRST]
        changed = (result[tiny.FIRST].float() - before).abs().amax((0, 2, 3))
        assert (changed > 0).all(), "all nine channels learn"
    if name == "previews":
        assert len(list(job.previews.glob("*.png"))) == 2


def test_held_out_pictures_are_measured(sd1: Project, photos: Path) -> None:
    job = train(sd1, **LORA, **{"concepts.0.instance_data_dir": str(photos), "concepts.0.held_out": 1})
    first, *_, last = told(job, "measured")
    assert first["held_out"] == 0 and last["held_out"] != 0


def test_imagic_fits_words_to_the_whole_picture(sd1: Project, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Tensor] = []
    real = inpainting_inputs.concatenate
    monkeypatch.setattr(inpainting_inputs, "concatenate", lambda x, more: (taken.append(more), real(x, more))[1])
    for path in photos.glob("[02]*.png"):
        path.unlink()
    changes = {"imagic.enabled": True, "imagic.embedding_steps": 3, "intervals.max_train_steps": 2}
    job = train(sd1, **changes, **{"concepts.0.instance_data_dir": str(photos), "batching.train_batch_size": 1})
    assert len(taken) >= 5 and all((some[:, 0] == 1).all() for some in taken)
    assert sd1.embedding(saved(job)[-1]).exists()


def test_the_plan_counts_what_is_kept_of_it(sd1: Project, tmp_path: Path) -> None:
    plain = project.create(folders(sd1), "plain", tiny.write_original(tmp_path / "sd1.safetensors", "sd1"))
    chosen, said = settings.parse(SHORT), []
    for one in (plain, sd1):
        job = launcher.new_errand(folders(one), one, "check", chosen, sheet="")
        said.append(plan.report(job))
    more = forecast.latent_bytes([BUCKET] * 5, 8) - forecast.latent_bytes([BUCKET] * 5)
    weights = sum(said[1][key] for key in ("disk_bytes",)) - said[0]["disk_bytes"]
    assert said[0]["problems"] == said[1]["problems"] == []
    assert weights > more > 0


# ---- drawing


def test_it_draws_what_the_plain_model_draws(widened: Path) -> None:
    """As long as its five more channels weigh nothing."""
    drawn = [
        np.asarray(draw(families.load_file(file), [PROMPT], [5], Sampling(64, 72, 6, 4.0))[0], dtype=int)
        for file in (MINIATURE, widened)
    ]
    assert np.abs(drawn[0] - drawn[1]).max() <= 1 and drawn[0].std() > 1


def test_it_draws_what_diffusers_draws(made: Project, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a mask of ones. Diffusers takes a draw of the grey picture's latents, we their mean; and it gives its VAE
    the colours of a pixel side by side in memory, which these small ones answer otherwise where all is of one grey."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    encode = AutoencoderKL.encode
    monkeypatch.setattr(AutoencoderKL, "encode", lambda vae, x, **more: encode(vae, x.contiguous(), **more))
    model = families.load(open_model(made))
    ours = draw(model, [PROMPT], [5], Sampling(64, 64, 4, 4.0, scheduler="ddim"))[0]
    theirs = tiny.pipeline(kind)
    theirs.scheduler = make_scheduler("ddim", model)
    drawn = np.asarray(inpainted(theirs, Image.new("RGB", (64, 64), "red"), Image.new("L", (64, 64), 255)), dtype=int)
    assert np.abs(drawn - np.asarray(ours, dtype=int)).max() <= 1
    assert drawn.std() > 1


def inpainted(pipe: Any, image: Image.Image, mask: Image.Image) -> Image.Image:
    pipe.set_progress_bar_config(disable=True)
    given = {"image": image, "mask_image": mask, "strength": 1.0, "width": 64, "height": 64}
    seeded = torch.Generator().manual_seed(5)
    made = pipe(PROMPT, num_inference_steps=4, guidance_scale=4.0, generator=seeded, **given)
    return made.images[0]


def test_generate_draws_and_words_are_measured(sd1: Project) -> None:
    chosen, fields = short_jobs.drawing(sd1, {"prompt": PROMPT, "base": True, "width": 64, "height": 64, "steps": 1})
    job = launcher.new_errand(folders(sd1), sd1, "generate", chosen, **fields)
    [path] = generate.run(job)["pictures"]
    assert Image.open(path).size == (64, 64)
    meter = Meter(families.load(open_model(sd1)))
    assert meter.strength("a red star", "a star") > 0


# ---- files


def test_what_it_is_is_seen_in_file_and_folder(kind: str, made: Project, tmp_path: Path) -> None:
    for path in (made.source, tiny.write_folder(tmp_path / "folder", kind)):
        about = checkpoint.describe(checkpoint.read_header(path))
        assert (about.kind, about.family, about.inpainting) == ("checkpoint", tiny.family_of(kind), True)
        assert about.reason == ""


def test_its_results_are_inpainting_models_in_each_format(kind: str, made: Project, tmp_path: Path) -> None:
    job = train(made)
    result = saved(job)[-1]
    about = checkpoint.describe(checkpoint.read_header(result))
    assert about.inpainting and about.metadata["modelspec.architecture"].endswith("/inpainting")
    assert "generative-models" in about.metadata["modelspec.implementation"]
    written = result.with_suffix(".yaml")
    assert written.exists() == kind.startswith("sd2")
    if written.exists():
        layout = yaml.safe_load(written.read_text())["model"]
        assert layout["target"].endswith("LatentInpaintDiffusion")
        assert layout["params"]["conditioning_key"] == "hybrid" and layout["params"]["finetune_keys"] is None
        assert layout["params"]["unet_config"]["params"]["in_channels"] == 9
    exported(made, to=str(tmp_path / "a.ckpt"))
    one, other = open_source(tmp_path / "a.ckpt"), open_source(result)
    assert one.about.inpainting
    assert all(torch.equal(one.read(name), other.read(name)) for name in other.tensors)
    exported(made, to=str(tmp_path / "folder"))
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "folder", local_files_only=True)
    assert type(pipe) is type(tiny.pipeline(kind))
    ours = families.load(other).unet.state_dict()
    assert all(torch.equal(tensor.float(), ours[name]) for name, tensor in pipe.unet.state_dict().items())
    assert np.asarray(inpainted(pipe, Image.new("RGB", (64, 64), "red"), spot((0, 0, 32, 64)))).std() > 0


@pytest.fixture(scope="module")
def learned(sd1: Project) -> dict[str, Path]:
    """What a run of each method has written."""
    return {"full": saved(train(sd1))[-1], "lora": saved(train(sd1, **LORA))[-1]}


def test_what_it_learned_is_merged_and_extracted(sd1: Project, learned: dict[str, Path], tmp_path: Path) -> None:
    exported(sd1, weights=str(learned["lora"]), to=str(tmp_path / "merged.safetensors"), merge=1.0)
    assert checkpoint.describe(checkpoint.read_header(tmp_path / "merged.safetensors")).inpainting
    for name, file in learned.items():
        exported(sd1, weights=str(file), to=str(tmp_path / f"{name}.safetensors"), rank=1)
        layers = lora.read(tmp_path / f"{name}.safetensors", open_model(sd1).tensors, "sd1")
        assert layers and "unet/conv_in.weight" not in layers


@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_it_learned_is_put_onto_a_plain_model(
    sd1: Project, learned: dict[str, Path], method: str, tmp_path: Path
) -> None:
    """Of the first convolution, what it learned for the noisy latents."""
    plain, to = tiny.write_original(tmp_path / "plain.safetensors", "sd1"), tmp_path / "onto.safetensors"
    exported(sd1, weights=str(learned[method]), to=str(to), onto=str(plain))
    about = checkpoint.describe(checkpoint.read_header(to))
    assert not about.inpainting and not about.metadata["modelspec.architecture"].endswith("/inpainting")
    change = load_file(to)[tiny.FIRST] - load_file(plain)[tiny.FIRST]
    if method == "lora":
        assert not change.any()
    else:
        wanted = load_file(learned["full"])[tiny.FIRST] - load_file(sd1.source)[tiny.FIRST]
        assert wanted[:, :4].any() and torch.allclose(change, wanted[:, :4], atol=1e-6)
