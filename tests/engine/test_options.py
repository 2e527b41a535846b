"""Options that are not seen on pictures: which weights change, what is refused, what is made again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import load_file

from dreambooth.core import project, settings
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings.conflicts import of_optimizers
from dreambooth.engine import families, plan, worker
from dreambooth.engine.data import class_pictures, pictures
from dreambooth.engine.families.model import Model
from dreambooth.engine.run import outputs
from dreambooth.engine.training import loss, preview
from dreambooth.engine.training.session import Session
from dreambooth.service import launcher

SHORT = {
    "concepts.0.instance_data_dir": str(SUBJECT_PICTURES),
    "concepts.0.instance_prompt": "a photo of sks star",
    "general.method": "full",
    "learning.learning_rate": 1e-4,
    "learning.text_encoder_learning_rate": 1e-4,
    "intervals.num_train_epochs": 1,
    "batching.train_batch_size": 5,
    "previews.count": 0,
    "saving.half_model": False,
}


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return project.create(Folders(tmp_path_factory.mktemp("options")), "star", MINIATURE)


def train(star: Project, **changes: Any) -> Job:
    job = launcher.new_run(Folders(star.folder.parents[1]), star, settings.parse({**SHORT, **changes}))
    assert worker.run(job) == "done"
    return job


def saved(job: Job) -> list[Path]:
    return [Path(event["path"]) for event in job.events()[0] if event["event"] == "saved"]


def changed(job: Job) -> set[str]:
    """The parts of the checkpoint that differ from the source."""
    before, after = load_file(MINIATURE), load_file(saved(job)[-1])
    return {name.split(".")[0] for name in before if not torch.equal(before[name].float(), after[name].float())}


def test_the_text_encoder_learns_only_when_asked(star: Project) -> None:
    assert changed(train(star)) == {"model"}
    assert changed(train(star, **{"tuning.text_encoder_ratio": 1.0})) == {"model", "cond_stage_model"}


def test_pictures_are_cut_to_the_resolution(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    sides: set[tuple[int, ...]] = set()
    encode = Model.encode_pictures

    def watched(model: Model, pixels: torch.Tensor, *rest: Any) -> Any:
        sides.add(tuple(pixels.shape[-2:]))
        return encode(model, pixels, *rest)

    monkeypatch.setattr(Model, "encode_pictures", watched)
    train(star, **{"general.resolution": 128, "pictures.buckets": False})
    assert sides == {(128, 128)}


def test_the_prompt_is_what_the_pictures_are_learned_under(star: Project) -> None:
    one, other, again = (
        load_file(saved(train(star, **{"concepts.0.instance_prompt": prompt}))[-1])
        for prompt in ("a photo of sks star", "a photo of a cat", "a photo of sks star")
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


LONG = "a photo of sks star, " + "red, " * 60


@pytest.mark.parametrize(
    ("changes", "prompt"),
    [
        ({"tuning.max_token_length": 150}, LONG),
        ({"tuning.clip_skip": 2}, "a photo of sks star"),
        ({"tuning.pad_tokens": False}, "a photo of sks star"),
    ],
    ids=["length", "clip skip", "padding"],
)
def test_how_prompts_are_read_changes_what_is_learned(star: Project, changes: dict[str, Any], prompt: str) -> None:
    one, other = (
        load_file(saved(train(star, **{"concepts.0.instance_prompt": prompt}, **some))[-1]) for some in ({}, changes)
    )
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.thorough
def test_a_short_memory_of_the_average_is_nearer_to_the_weights(star: Project) -> None:
    longer, name = {"intervals.num_train_epochs": 10}, "model.diffusion_model.input_blocks.0.0.weight"
    averages = [{}, *({"tuning.use_ema": True, "tuning.ema_decay": decay} for decay in (0.1, 0.9))]
    plain, short, long = (load_file(saved(train(star, **longer, **average))[-1])[name] for average in averages)
    assert 0 < (short - plain).norm() < (long - plain).norm()


def test_the_pictures_are_those_of_the_folder(star: Project, tmp_path: Path) -> None:
    for picture in sorted(SUBJECT_PICTURES.glob("*.png"))[:2]:
        shutil.copy(picture, tmp_path)
    job = train(star, **{"concepts.0.instance_data_dir": str(tmp_path), "batching.train_batch_size": 1})
    assert [event["images"] for event in job.events()[0] if event["event"] == "saved"] == [2]


@pytest.mark.parametrize("key", ["concepts.0.repeats", "intervals.num_train_epochs"])
def test_more_repeats_or_epochs_see_more_pictures(star: Project, key: str) -> None:
    runs = [train(star, **{key: count}) for count in (1, 3)]
    lengths = [event["images"] for job in runs for event in job.events()[0] if event["event"] == "saved"]
    assert lengths == [5, 15]


def test_previews_come_every_so_many_epochs(star: Project) -> None:
    shown = {"previews.count": 1, "previews.steps": 1, "intervals.num_train_epochs": 4}
    job = train(star, **shown, **{"intervals.save_preview_every": 2})
    previews = [event for event in job.events()[0] if event["event"] == "preview"]
    assert [event["images"] for event in previews] == [0, 10, 20]
    assert previews[0]["prompts"] == preview.prompts(settings.parse(job.settings()))


def test_states_are_saved_every_so_many_epochs(star: Project) -> None:
    job = train(star, **{"intervals.num_train_epochs": 6, "intervals.save_state_every": 2})
    assert [event["step"] for event in job.events()[0] if event["event"] == "state"] == [2, 4]


@pytest.mark.parametrize(("batch", "accumulation", "expected"), [(1, 1, (5, 5)), (5, 1, (1, 1)), (1, 5, (5, 1))])
def test_a_step_is_a_batch_or_several_added_up(
    star: Project, batch: int, accumulation: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How often the model is asked and how often its weights change, for five pictures."""
    counts = {"asked": 0, "changed": 0}

    def counted(name: str, what: Callable[..., Any]) -> Callable[..., Any]:
        def count(*given: Any, **more: Any) -> Any:
            counts[name] += 1
            return what(*given, **more)

        return count

    monkeypatch.setattr(loss, "compute_losses", counted("asked", loss.compute_losses))
    monkeypatch.setattr(Session, "change_weights", counted("changed", Session.change_weights))
    train(star, **{"batching.train_batch_size": batch, "batching.gradient_accumulation_steps": accumulation})
    assert (counts["asked"], counts["changed"]) == expected


def test_checkpointing_works_out_the_blocks_again(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = ResnetBlock2D.forward

    def counted(block: ResnetBlock2D, *given: Any, **more: Any) -> Any:
        calls.append(block)
        return forward(block, *given, **more)

    monkeypatch.setattr(ResnetBlock2D, "forward", counted)
    counts = []
    for checkpointed in (False, True):
        calls.clear()
        train(star, **{"batching.gradient_checkpointing": checkpointed})
        unet = [block for block in calls if block.time_emb_proj is not None]  # the VAE's know no time
        counts.append(len(unet))
    assert 1.5 * counts[0] < counts[1] <= 2 * counts[0]  # the first of the middle is kept by diffusers


@pytest.mark.parametrize("half", [True, False])
def test_results_are_written_in_half_or_whole(star: Project, half: bool) -> None:
    written = load_file(saved(train(star, **{"saving.half_model": half}))[-1])
    unet = {tensor.dtype for name, tensor in written.items() if name.startswith("model.diffusion_model.")}
    assert unet == {torch.float16 if half else torch.float32}


def test_a_lora_has_the_layers_that_are_chosen(star: Project) -> None:
    found = []
    for layers in ("attention", "transformer", "convolutions"):
        written = load_file(saved(train(star, **{"general.method": "lora", "lora.layers": layers}))[-1])
        found.append({name.rpartition("_")[0] for name in written if name.endswith("lora_up.weight")})
    assert found[0] < found[1] < found[2]
    assert all("attn" in name for name in found[0])
    assert any("ff_net" in name for name in found[1])
    assert any("resnets" in name for name in found[2])
    assert not any("resnets" in name for name in found[1])


def test_the_text_encoder_stops_at_a_step(star: Project) -> None:
    """The same weights as with the share of the run that the step is, whatever the share says."""
    length = {"intervals.max_train_steps": 4, "general.method": "full"}
    stopped = load_file(saved(train(star, **length, **{"tuning.text_encoder_steps": 2}))[-1])
    ratios = (load_file(saved(train(star, **length, **{"tuning.text_encoder_ratio": r}))[-1]) for r in (0.5, 0.75))
    same = [all(torch.equal(stopped[name], other[name]) for name in stopped) for other in ratios]
    assert same == [True, False]


@pytest.mark.parametrize("layers", ["all", "attention", "cross_attention"])
def test_only_the_layers_that_are_unfrozen_change(star: Project, layers: str) -> None:
    after, before = load_file(saved(train(star, **{"tuning.unet_layers": layers}))[-1]), load_file(MINIATURE)
    moved = {name for name in before if not torch.equal(before[name].float(), after[name].float())}
    kinds = {"attn1" in name or ("other" if "attn2" not in name else "attn2") for name in moved}
    assert (
        kinds == {"all": {True, "attn2", "other"}, "attention": {True, "attn2"}, "cross_attention": {"attn2"}}[layers]
    )
    widths = [before[name].shape for name in moved if name.endswith("attn2.to_k.weight")]
    assert widths and all(
        shape[1] == before["cond_stage_model.transformer.text_model.final_layer_norm.weight"].shape[0]
        for shape in widths
    )


def test_each_part_has_its_own_learning_rate(star: Project) -> None:
    rates = {"tuning.text_encoder_ratio": 1.0, "optimizer.weight_decay": 0.0}
    assert changed(train(star, **rates, **{"learning.learning_rate": 0.0})) == {"cond_stage_model"}
    assert changed(train(star, **rates, **{"learning.text_encoder_learning_rate": 0.0})) == {"model"}


def test_the_average_lags_behind_the_weights(star: Project) -> None:
    longer = {"intervals.num_train_epochs": 10, "tuning.ema_decay": 0.9}
    base, plain, average = (
        load_file(MINIATURE),
        load_file(saved(train(star, **longer))[-1]),
        load_file(saved(train(star, **longer, **{"tuning.use_ema": True}))[-1]),
    )
    name = "model.diffusion_model.input_blocks.0.0.weight"
    moved, followed = plain[name] - base[name].float(), average[name] - base[name].float()
    assert 0 < followed.norm() < moved.norm()
    assert torch.nn.functional.cosine_similarity(moved.flatten(), followed.flatten(), dim=0) > 0.8


def test_models_are_written_on_the_way_under_names_of_their_own(star: Project) -> None:
    job = train(star, **{"intervals.num_train_epochs": 4, "intervals.save_model_every": 2})
    assert [path.name.split("_")[1].split("-")[0].split(".")[0] for path in saved(job)] == ["10", "20"]
    assert len(set(saved(job))) == 2


def test_a_name_of_ones_own(star: Project) -> None:
    assert saved(train(star, **{"saving.custom_model_name": "my star"}))[0].name == "my star_5.safetensors"


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_folder_of_the_models_own(star: Project, method: str) -> None:
    """And no two results have one name: a WebUI knows a LoRA by its name alone."""
    folders = Folders(star.folder.parents[1])
    place = folders.loras if method == "lora" else folders.checkpoints
    inside = {"general.method": method, "saving.use_subdirectory": True}
    (first,) = saved(train(star, **inside))
    (plain,) = saved(train(star, **{"general.method": method}))
    job = train(star, **inside)
    (last,) = saved(job)
    assert [path.parent for path in (first, plain, last)] == [place / star.name, place, place / star.name]
    assert len({path.name for path in (first, plain, last)}) == 3
    assert plan.report(job)["output_folder"] == str(place / star.name)
    gone = place / star.name / f".{2**22 + 1}.x.partial.safetensors"  # of an engine that was killed
    gone.touch()
    outputs.remove_abandoned(folders)
    assert not gone.exists() and first.exists()


def test_lora_rank_and_alpha_are_what_the_file_says(star: Project) -> None:
    job = train(star, **{"general.method": "lora", "lora.rank": 3, "lora.alpha": 6.0})
    tensors = load_file(saved(job)[0])
    assert {t.shape[0] for name, t in tensors.items() if name.endswith("lora_down.weight")} == {3}
    assert {t.item() for name, t in tensors.items() if name.endswith(".alpha")} == {6.0}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do fp16")
def test_a_precision_that_the_device_cannot_do_is_refused(star: Project) -> None:
    job = launcher.new_run(
        Folders(star.folder.parents[1]), star, settings.parse({**SHORT, "tuning.mixed_precision": "fp16"})
    )
    with pytest.raises(UserError, match="mixed_precision: for fp16 it needs a card"):
        worker.run(job)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_bf16_trains_and_writes_finite_weights(star: Project, method: str) -> None:
    job = train(star, **{"tuning.mixed_precision": "bf16", "general.method": method, "tuning.text_encoder_ratio": 1.0})
    assert all(torch.isfinite(t).all() for t in load_file(saved(job)[0]).values())


def test_a_loss_that_is_no_number_ends_the_run_and_saves_nothing(
    star: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_optimizers, "_MOST_RATE", 1.0)  # nothing that is allowed ruins the miniature as fast
    changes = {"learning.learning_rate": 1.0, "optimizer.max_grad_norm": 0, "intervals.num_train_epochs": 40}
    chosen = settings.parse({**SHORT, **changes, "intervals.save_state_every": 30, "batching.train_batch_size": 1})
    job = launcher.new_run(Folders(star.folder.parents[1]), star, chosen)
    with pytest.raises(UserError, match=r"no numbers any more|was not a number"):
        worker.run(job)
    assert not saved(job)
    assert not list(job.state.glob("0*"))


def test_a_source_that_is_gone_is_said(tmp_path: Path) -> None:
    source = tmp_path / "source.safetensors"
    source.write_bytes(MINIATURE.read_bytes())
    star = project.create(Folders(tmp_path), "star", source)
    source.unlink()
    job = launcher.new_run(Folders(tmp_path), star, settings.parse(SHORT))
    with pytest.raises(UserError, match="is gone; put it back"):
        worker.run(job)


def test_class_pictures_are_drawn_so_many_at_a_time(star: Project) -> None:
    chosen = {"concepts.0.class_prompt": "a star", "concepts.0.num_class_images_per": 1}
    some = {**chosen, "concepts.0.class_infer_steps": 1, "batching.class_batch_size": 2}
    done = [event["done"] for event in train(star, **some).events()[0] if event.get("name") == "class pictures"]
    assert done == [0, 2, 4, 5]


def test_class_pictures_go_on_where_they_stopped(star: Project, tmp_path: Path) -> None:
    model = families.load_file(MINIATURE)
    chosen = {
        "concepts.0.class_prompt": "a star",
        "concepts.0.num_class_images_per": 1,
        "concepts.0.class_infer_steps": 2,
    }

    def plan(folder: Path) -> list[class_pictures.Plan]:
        parsed = settings.parse({**SHORT, **chosen, "concepts.0.class_data_dir": str(folder)})
        return class_pictures.plan(star, parsed, pictures.examples(pictures.gather(parsed.concepts), parsed, 64), 64)

    def stop(done: int, total: int, last: Path) -> None:
        raise KeyboardInterrupt

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    class_pictures.make(model, plan(whole), lambda _: 2, lambda *_: None, lambda: None)
    with pytest.raises(KeyboardInterrupt):
        class_pictures.make(model, plan(broken), lambda _: 2, stop, lambda: None)
    assert [p.missing for p in plan(broken)] == [3]
    class_pictures.make(model, plan(broken), lambda _: 2, lambda *_: None, lambda: None)
    files = sorted(path.name for path in whole.iterdir())
    assert len(files) == 5
    assert all((whole / name).read_bytes() == (broken / name).read_bytes() for name in files)
    assert [p.missing for p in plan(broken)] == [0]
