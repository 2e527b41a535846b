"""A class that is kept by prediction: no pictures of it, a LoRA keeps to what the model under it predicts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import parse
from dreambooth.engine import class_images, families, plan, worker
from dreambooth.engine.bench.live_tensors import Live
from dreambooth.engine.families.model import Model
from dreambooth.engine.families.text_encoding import TextEmbedding
from dreambooth.engine.run.dataset import Dataset
from dreambooth.engine.training import step_metrics
from dreambooth.engine.training.session import Session
from dreambooth.service import launcher
from dreambooth.ui.describe import of_runs
from tests.engine import batches, tiny
from tests.engine.runs import LORA, SHORT, new_run, output, same, saved, tiny_project, told, train

KEPT: dict[str, Any] = {
    **LORA,
    "concepts.0.class_mode": "prediction",
    "concepts.0.class_prompt": "a photo of a star",
    "batching.train_batch_size": 2,
}
Call = tuple[Tensor, Tensor, TextEmbedding, Tensor, Tensor]  # what the UNet was given, and what it said


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return families.load_file(tiny.write_original(tmp_path_factory.mktemp("tiny") / "a.safetensors", request.param))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return tiny_project(tmp_path)


def learned(session: Session) -> Session:
    """With weights as if something had been learned."""
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in session.trained.named().values():
            weight += 0.1 * torch.randn_like(weight)
    return session


def calls(session: Session) -> tuple[tuple[Tensor, ...], list[Call]]:
    """A batch's losses, and each time that the UNet was asked for them."""
    found: list[Call] = []
    original = type(session.model).denoise

    def denoise(model: Model, x_t: Tensor, t: Tensor, text: TextEmbedding, sizes: Tensor) -> Tensor:
        said = original(model, x_t, t, text, sizes)
        found.append((x_t, t, text, sizes, said))
        return said

    session.model.denoise = denoise.__get__(session.model)  # type: ignore[method-assign]
    return batches.losses(session), found


@pytest.mark.parametrize(
    ("kind", "text"),
    [("lora", 0.0), ("lora", 1.0), ("convolutions", 0.0), ("dora", 1.0), ("loha", 1.0), ("lokr", 0.0), ("oft", 1.0)],
)
def test_what_is_kept_to_is_what_the_model_says_without_what_was_learned(model: Model, kind: str, text: float) -> None:
    layers = {"lora.layers": "convolutions"} if kind == "convolutions" else {"lora.kind": kind}
    session = learned(batches.session(model, **{**KEPT, **layers, "tuning.text_encoder_ratio": text}))
    with torch.no_grad():
        (_, _, of_class), ((x_t, t, read, sizes, kept_to), (_, _, _, _, said)) = calls(session)
    plain = copy.deepcopy(model.unet).requires_grad_(False)
    untouched = type(model).denoise(_with(model, plain), x_t, t, model.encode_text(["a thing"] * 2), sizes)
    assert len(kept_to) == 2
    assert torch.allclose(kept_to, untouched, atol=1e-5)
    assert torch.allclose(read.hidden, model.encode_text(["a thing"] * 2).hidden, atol=1e-5)
    assert (said[2:] - kept_to).abs().max() > 1e-3
    assert torch.allclose(of_class, (said[2:] - kept_to).square().mean(), rtol=1e-4)


def _with(model: Model, unet: Any) -> Model:
    made = copy.copy(model)
    made.unet = unet
    return made


def test_nothing_is_learned_by_what_is_kept_to(model: Model) -> None:
    """Its prediction leaves no gradient, and the adapters learn as ever afterwards."""
    session = learned(batches.session(model, **KEPT))
    (loss, _, _), ((*_, kept_to), _) = calls(session)
    assert not kept_to.requires_grad
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(weight.grad is not None for weight in session.trained.named().values())


def test_concepts_with_pictures_of_their_class_keep_to_these(model: Model) -> None:
    other = {"concepts.1.num_class_images_per": 1, "concepts.1.class_prompt": "a thing"}
    session = learned(batches.session(model, concepts=2, **{**KEPT, **other, "batching.train_batch_size": 6}))
    with torch.no_grad():
        (_, _, of_class), ((x_t, *_, kept_to), (all_x_t, *_, said)) = calls(session)
    _, priors = session.order.batch(0, 6)
    assert session.priors is not None
    assert len(kept_to) == int((session.priors.concept[priors] == 0).sum()) == 3
    assert torch.equal(x_t, all_x_t[9:])
    assert not torch.allclose(of_class, (said[9:] - kept_to).square().mean(), rtol=1e-2)


@pytest.mark.thorough
def test_a_run_draws_nothing_and_keeps_the_class(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger weight leaves the class's prompt nearer to what it was."""
    monkeypatch.setattr(step_metrics, "REPORT_SECONDS", -1.0)  # each step is told
    drifts = []
    for weight in (0.0, 10.0):
        job = train(project, **{**KEPT, "tuning.prior_loss_weight": weight, "intervals.num_train_epochs": 16})
        assert not [one for one in told(job, "stage") if one["name"] == "class pictures"]
        assert not project.class_pictures.exists()
        drifts.append(sum(one["prior_loss"] for one in told(job, "step")[-3:]))
    assert told(job, "step")[0]["prior_loss"] == 0.0, "a LoRA begins as what it is kept to"
    assert 0 < drifts[1] < 0.5 * drifts[0]


def test_a_lora_to_go_on_from_is_not_what_is_kept_to(project: Project) -> None:
    first = train(project, **LORA)
    job = train(project, **{**KEPT, "lora.start_file": str(saved(first)[-1])})
    assert told(job, "step")[0]["prior_loss"] > 0


@pytest.mark.parametrize("text", [0.0, 0.5, 1.0])
def test_a_run_that_paused_ends_as_one_that_did_not(
    project: Project, text: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**KEPT, "tuning.text_encoder_ratio": text, "intervals.num_train_epochs": 4, "pictures.hflip": True}
    wanted = output(train(project, **changes))
    job = new_run(project, **changes)
    with monkeypatch.context() as patched:
        asked = lambda hooks: {"pause"} if hooks.session.step == 6 else set()  # noqa: E731
        patched.setattr(worker.RunHooks, "requests", asked)
        AcceleratorState._reset_state(reset_partial_state=True)
        assert worker.run(job) == "paused"
    AcceleratorState._reset_state(reset_partial_state=True)
    assert worker.run(job) == "done"
    assert same(wanted, output(job))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"general.method": "full"}, "concepts.0.class_mode: prediction keeps a LoRA to the model under it"),
        ({"concepts.0.class_prompt": " "}, "concepts.0.class_prompt: it is empty; say what is to stay as it is"),
        ({"imagic.enabled": True}, "concepts.0.class_mode to off"),
    ],
)
def test_what_cannot_be_kept_by_prediction_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse({**KEPT, "concepts.0.instance_prompt": "a photo of sks star", **changes})


@pytest.mark.parametrize("prompts", [("a star", "a star"), ("[filewords]", "[filewords]")])
def test_a_class_that_reads_as_the_subject_does_is_refused_before_the_model_is_loaded(
    project: Project, prompts: tuple[str, str]
) -> None:
    own, of_class = prompts
    job = new_run(project, **{**KEPT, "concepts.0.instance_prompt": own, "concepts.0.class_prompt": of_class})
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(UserError, match=r"concepts.0.class_prompt: it reads '.*' for .*, as its own prompt does"):
        worker.run(job)
    assert not [one for one in told(job, "stage") if one["name"] == "loading the model"]


def test_captions_are_read_without_the_subject(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    encode = Dataset.encode
    monkeypatch.setattr(
        Dataset,
        "encode",
        lambda own, *given: asked.extend(one.picture.prompt for one in own.priors) or encode(own, *given),
    )
    train(
        project,
        **{
            **KEPT,
            "concepts.0.instance_prompt": "a photo of [filewords]",
            "concepts.0.class_prompt": "a photo of [filewords]",
            "concepts.0.instance_token": "sks",
            "concepts.0.class_token": "star",
        },
    )
    assert len(asked) == len(list(SUBJECT_PICTURES.glob("*.png")))
    assert all("star" in words and "sks" not in words for words in asked), asked


def test_a_step_holds_no_more_than_with_pictures_of_the_class(model: Model) -> None:
    """What the model predicts without its adapters keeps nothing for the way back."""
    pictured = {"concepts.0.class_mode": "fill", "concepts.0.num_class_images_per": 1}
    peaks = []
    for changes in (pictured, {}):
        session = batches.session(model, **{**KEPT, **changes})
        with Live(held=[weight for part in session.model.parts.values() for weight in part.parameters()]) as live:
            loss, _, _ = batches.losses(session)
            loss.backward()  # type: ignore[no-untyped-call]
        peaks.append(live.peak)
    assert peaks[1] < 1.02 * peaks[0]


def test_the_check_says_what_is_kept_to_and_what_reads_alike(project: Project) -> None:
    said = plan.report(errand(project, "check", **KEPT))
    assert (said["kept_prompts"], said["class_pictures"], said["problems"]) == (["a photo of a star"], [], [])
    assert "Kept as the model predicts it, without class pictures: a photo of a star" in of_runs.plan(said)
    alike = plan.report(errand(project, "check", **{**KEPT, "concepts.0.class_prompt": "a photo of sks star"}))
    assert "as its own prompt does" in alike["problems"][0]


def test_there_are_no_class_pictures_to_be_made(project: Project) -> None:
    with pytest.raises(UserError, match=r"concepts.0.class_mode: it is prediction, so this model trains without"):
        class_images.run(errand(project, "class-images", **KEPT))


def errand(project: Project, kind: str, **changes: Any) -> Job:
    return launcher.new_errand(Folders(project.folder.parents[1]), project, kind, parse({**SHORT, **changes}))
