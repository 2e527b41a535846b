"""Pictures that are held out: never learned, and they tell when a run was best."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image, ImageChops, ImageOps

from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import SUBJECT_PICTURES
from dreambooth.core.job_folder import BEFORE, Ending, Job
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import parse
from dreambooth.engine import families, plan, worker
from dreambooth.engine.checkpoints import lora_header
from dreambooth.engine.checkpoints.source import open_model
from dreambooth.engine.data import cache, cropping
from dreambooth.engine.data.decoding import decode
from dreambooth.engine.drawing.sampling import make_scheduler
from dreambooth.engine.families.model import Model
from dreambooth.engine.run import best, outputs
from dreambooth.engine.run.dataset import Dataset
from dreambooth.engine.training import loop, objective, preview, state, validation
from dreambooth.engine.training.session import Session
from dreambooth.engine.training.state import NotSaved
from dreambooth.engine.training.validation import TIMESTEPS, Validation, ValidationResult
from dreambooth.engine.work import Asked, Work
from dreambooth.service import launcher, resume_run, runs
from dreambooth.ui.describe import of_runs
from tests.engine.runs import LORA, SHORT, folders, new_run, output, same, saved, tiny_project, told, train

HELD: dict[str, Any] = {
    **LORA,
    "concepts.0.held_out": 1,
    "concepts.0.class_prompt": "a photo of a star",
    "batching.train_batch_size": 2,
    "intervals.num_train_epochs": 6,  # of four pictures: 12 steps
    "intervals.validate_every": 1,
}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return tiny_project(tmp_path)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Session]]:
    found: list[Session] = []

    def trained(session: Session, hooks: loop.Hooks) -> Ending:
        found.append(session)
        return loop.train(session, hooks)

    monkeypatch.setattr(worker, "train", trained)
    yield found


def goes(*held_out: float) -> Any:
    """A validation that finds these, before the run and then in turn."""
    values = iter((0.0, *held_out))
    return lambda self: ValidationResult(next(values), 0.5, None)


def kept(job: Job) -> list[int]:
    """The images of the results that are still there."""
    return [event["images"] for event in job.story().saved if Path(event["path"]).is_file()]


# ---- which are held out


def test_what_is_held_out_is_never_learned(project: Project, sessions: list[Session]) -> None:
    job = train(project, **HELD)
    (session,) = sessions
    learned = {file for step in range(1, session.budget.steps + 1) for file in session.batch_files(step)}
    assert len(learned) == session.budget.pictures == 4
    (out,) = {str(path) for path in SUBJECT_PICTURES.glob("*.png")} - learned
    row = next(one for one in plan.report(errand(project, "check", **HELD))["pictures"] if one["path"] == out)
    assert row["held_out"]
    assert len(told(job, "measured")) == 7


def test_the_same_are_held_out_wherever_they_lie_and_others_with_another_seed(project: Project, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(SUBJECT_PICTURES, tmp_path / "elsewhere")

    def out(folder: Path, seed: int) -> list[str]:
        changes = {**HELD, "concepts.0.instance_data_dir": str(folder), "concepts.0.held_out": 2, "general.seed": seed}
        return [one["name"] for one in plan.report(errand(project, "check", **changes))["pictures"] if one["held_out"]]

    assert out(SUBJECT_PICTURES, 1) == out(elsewhere, 1)
    assert len({tuple(out(SUBJECT_PICTURES, seed)) for seed in range(6)}) > 1


def test_the_check_counts_what_is_learned_and_says_what_is_not(project: Project) -> None:
    said = plan.report(errand(project, "check", **HELD, **{"concepts.0.num_class_images_per": 2}))
    assert (said["images_each_epoch"], said["class_pictures"][0]["wanted"]) == (4, 8)
    assert "held out" in of_runs.plan(said)


@pytest.mark.parametrize(("count", "mend"), [(5, "hold out 4 or fewer"), (9, "hold out 4 or fewer")])
def test_something_must_be_left_to_learn(project: Project, count: int, mend: str) -> None:
    said = plan.report(errand(project, "check", **{**HELD, "concepts.0.held_out": count}))
    (problem,) = said["problems"]
    assert problem.startswith("concepts.0.held_out: of 5 pictures")
    assert mend in problem


def errand(project: Project, kind: str, **changes: Any) -> Job:
    return launcher.new_errand(Folders(project.folder.parents[1]), project, kind, parse({**SHORT, **changes}))


# ---- what is measured


@pytest.mark.parametrize("kind", ["sd1", "sdxl-v"])
def test_the_measure_is_how_much_better_the_picture_is_predicted(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worked out once more from the file that the run wrote."""
    made = tiny_project(tmp_path, kind)
    changes = {**HELD, "general.method": "full", "saving.half_model": False, "intervals.validate_every": 100}
    job = train(made, **changes)
    last = told(job, "measured")[-1]
    rows = plan.report(errand(made, "check", **changes))["pictures"]
    (out,) = [one for one in rows if one["held_out"]]
    before, after = families.load(open_model(made)), families.load_file(saved(job)[-1])
    errors = [_errors(model, Path(out["path"]), out["prompt"]) for model in (before, after)]
    assert last["held_out"] == pytest.approx(1 - float((errors[1] / errors[0]).mean()), abs=2e-3)
    assert last["held_out"] != 0


@torch.no_grad()
def _errors(model: Model, path: Path, words: str) -> torch.Tensor:
    picture = Image.open(path).convert("RGB").resize((64, 64))
    mean, _ = model.encode_pictures(cache.to_tensor(picture)[None])
    alpha_bar = make_scheduler("ddim", model).alphas_cumprod[list(TIMESTEPS)]
    seed = parse({**SHORT, **HELD}).general.seed
    eps = torch.randn((len(TIMESTEPS), *mean.shape[1:]), generator=torch.Generator().manual_seed(seed))
    x_t = objective.add_noise(mean, eps, alpha_bar)
    sizes = torch.tensor([[64, 64, 0, 0, 64, 64]] * len(TIMESTEPS))
    model.unet.eval()
    said = model.denoise(x_t, torch.tensor(TIMESTEPS), model.encode_text([words] * len(TIMESTEPS)), sizes)
    wanted = objective.target(model.prediction_type, mean, eps, alpha_bar)
    return (said - wanted).square().mean((1, 2, 3))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tuning.use_ema": True, "lora.dropout": 0.3},
        {"embedding.enabled": True, "concepts.0.instance_token": "sks"},
        pytest.param(
            {"tuning.text_encoder_ratio": 1.0, "pictures.hflip": True, "captions.dropout": 0.3},
            marks=pytest.mark.thorough,
        ),
        {"general.method": "full", "optimizer.name": "adamw_schedule_free"},
        {"memory.unet_weights": "streamed", "batching.gradient_checkpointing": True},
    ],
)
def test_measuring_changes_nothing_of_what_is_learned(project: Project, changes: dict[str, Any]) -> None:
    often = train(project, **{**HELD, **changes})
    seldom = train(project, **{**HELD, **changes, "intervals.validate_every": 100})
    assert (len(told(often, "measured")), len(told(seldom, "measured"))) == (7, 2)
    assert told(often, "measured")[0]["held_out"] == 0
    assert told(often, "measured")[-1]["held_out"] == told(seldom, "measured")[-1]["held_out"] != 0
    assert told(often, "measured")[-1]["drift"] > 0
    assert same(output(often), output(seldom))


@pytest.mark.thorough
def test_masked_pictures_and_several_shapes_and_concepts_are_measured(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "shapes"
    folder.mkdir()
    for n, path in enumerate(sorted(SUBJECT_PICTURES.glob("*.png"))):
        Image.open(path).convert("RGB").resize((128, 64) if n % 2 else (64, 64)).save(folder / f"{n}.png")
        Image.new("L", (128, 64) if n % 2 else (64, 64), 255).save(folder / f"{n}-mask.png")
    job = train(
        project,
        **{
            **HELD,
            "concepts.0.instance_data_dir": str(folder),
            "concepts.0.held_out": 2,
            "concepts.1.instance_data_dir": str(SUBJECT_PICTURES),
            "concepts.1.instance_prompt": "a photo of xyz star",
            "concepts.1.held_out": 1,
            "objective.masked": True,
        },
    )
    figures = told(job, "measured")[-1]
    assert figures["held_out"] != 0
    assert figures["drift"] > 0


def test_the_drift_is_how_far_predictions_for_the_class_moved_over_their_error() -> None:
    error, shape = (
        {"held_out": torch.ones(6), "learned": torch.ones(6), "class_error": torch.full((6,), 2.0)},
        (6, 4, 8, 8),
    )
    before = {**error, "class.0": torch.ones(shape), "class.1": torch.ones(shape)}
    now = {**error, "class.0": torch.full(shape, 1.5), "class.1": torch.zeros(shape)}
    found = validation._compare(before, now)
    assert found == ValidationResult(0.0, 0.0, (0.5**2 + 1**2) / 2 / 2)


def test_without_a_class_prompt_nothing_is_said_of_the_class(project: Project) -> None:
    job = train(project, **{**HELD, "concepts.0.class_prompt": ""})
    assert {event["drift"] for event in told(job, "measured")} == {None}


def test_without_held_out_pictures_nothing_is_measured(project: Project) -> None:
    job = train(project, **{**HELD, "concepts.0.held_out": 0})
    assert not told(job, "measured")
    assert len(saved(job)) == 1


def test_mirror_images_are_measured_and_change_nothing(project: Project) -> None:
    """All pictures are learned as without it, and others than these are told of."""
    changes = {**HELD, "concepts.0.held_out": 0, "intervals.num_train_epochs": 3}
    plain, measured = train(project, **changes), train(project, **changes, **{"intervals.validate_mirrored": True})
    assert same(output(plain), output(measured))
    first, *others = told(measured, "measured")
    assert (first["held_out"], len(others)) == (0, 3)
    assert 0 != others[-1]["held_out"] != others[-1]["learned"]
    assert not told(plain, "measured")


def test_a_mirror_image_is_that_of_a_learned_picture(project: Project, sessions: list[Session]) -> None:
    changes = {**HELD, "intervals.validate_mirrored": True, "intervals.num_train_epochs": 1}
    work = Work.open(new_run(project, **changes))
    material = Dataset.gather(work)
    (out, *mirrored) = material.held_out
    assert not out.cut.mirrored
    assert [one.cut.mirrored for one in mirrored] == [True] * 4
    assert {one.picture for one in mirrored} == set(material.pictures)
    left, right = (cropping.apply(decode(one.picture.path), one.cut) for one in (mirrored[0], material.own[0]))
    assert not ImageChops.difference(left, ImageOps.mirror(right)).getbbox()


@pytest.mark.parametrize("changes", [{"pictures.hflip": True}, {"imagic.enabled": True}])
def test_mirror_images_that_could_tell_nothing_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"intervals.validate_mirrored: .*; turn"):
        parse({"intervals.validate_mirrored": True, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "None held out: with --intervals.validate_mirrored on the run would tell"),
        ({"intervals.validate_mirrored": True}, "Mirror images only looked at, to tell when the run is best: 4"),
        ({"pictures.hflip": True}, ""),
    ],
)
def test_the_check_says_what_tells_a_run_of_few_pictures_when_it_is_best(
    project: Project, changes: dict[str, Any], said: str
) -> None:
    shown = of_runs.plan(plan.report(errand(project, "check", **changes)))
    assert said in shown if said else "when the run is best" not in shown


# ---- what comes of it


def test_the_best_result_is_kept_beside_the_last(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Validation, "measure", goes(0.1, 0.3, 0.2, 0.25, 0.1, 0.0))
    job = train(project, **HELD)
    assert kept(job) == [8, 24]
    assert job.story().best is not None and job.story().best.images == 8


def test_a_best_that_cannot_be_written_leaves_the_one_before(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after the end, whose own result is no better."""
    write = outputs.write

    def full(target: Path, *rest: Any) -> None:
        if target.stem.endswith("_8"):
            raise UserError(f"{target}: it cannot be written (No space left on device); make room.")
        write(target, *rest)

    monkeypatch.setattr(outputs, "write", full)
    monkeypatch.setattr(Validation, "measure", goes(0.1, 0.3, 0.2, 0.25, 0.1, 0.0))
    job = train(project, **HELD)
    assert any("No space left" in event["text"] for event in told(job, "warning"))
    assert kept(job) == [4, 24]


def test_what_is_written_anyway_is_not_written_twice_and_stays(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Validation, "measure", goes(0.1, 0.3, 0.2, 0.5, 0.1, 0.6))
    job = train(project, **HELD, **{"intervals.save_model_every": 2})
    assert kept(job) == [8, 16, 24]


@pytest.mark.parametrize("sibling", ["", ".ckpt"])
def test_what_goes_with_a_former_best_is_only_what_came_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sibling: str
) -> None:
    """Its .yaml stays for another file of that name, and what foreign events name is nobody's former best."""
    made, precious = tiny_project(tmp_path, "sd2"), tmp_path / "precious.safetensors"
    precious.touch()
    checkpoints, measured = folders(made).checkpoints, goes(0.1, 0.3, 0.2, 0.4, 0.1, 0.0)

    def measure(validation: Validation) -> ValidationResult:
        if sibling and (checkpoints / "sd2_8.yaml").exists():
            (checkpoints / "sd2_8.ckpt").touch()
        return measured(validation)  # type: ignore[no-any-return]

    monkeypatch.setattr(Validation, "measure", measure)
    job = new_run(made, **{**HELD, "general.method": "full"})
    job.report("saved", kind="checkpoint", path=str(precious), bytes=0, images=1, best=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert worker.run(job) == "done"
    assert precious.exists() and [images for images in kept(job) if images > 1] == [16, 24]
    assert (checkpoints / "sd2_8.yaml").exists() == bool(sibling)
    assert (checkpoints / "sd2_16.yaml").exists()


def test_a_last_result_that_is_the_best_stands_alone(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Validation, "measure", goes(0.1, 0.2, 0.3, 0.4, 0.5, 0.6))
    assert kept(train(project, **HELD)) == [24]


def test_the_best_is_not_kept_where_that_is_not_wanted(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Validation, "measure", goes(0.1, 0.3, 0.2, 0.25, 0.1, 0.0))
    assert kept(train(project, **HELD, **{"saving.keep_best": False})) == [24]


def test_a_run_ends_when_its_patience_does(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Validation, "measure", goes(0.1, 0.3, 0.2, 0.1, 0.0, 0.0))
    job = train(project, **HELD, **{"intervals.patience": 2})
    assert kept(job) == [8, 16]
    monkeypatch.setattr(Validation, "measure", goes(0.1, 0.3, 0.2, 0.1, 0.0, 0.0))
    assert kept(train(project, **HELD)) == [8, 24]


@pytest.mark.thorough
def test_a_run_that_ended_by_its_patience_goes_on_nevertheless(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same weights as one that had no patience."""
    course = (0.1, 0.3, 0.2, 0.1, 0.0, 0.4)
    with monkeypatch.context() as patched:
        patched.setattr(Validation, "measure", goes(*course))
        whole = train(project, **HELD)
        patched.setattr(Validation, "measure", goes(*course))
        job = train(project, **HELD, **{"intervals.patience": 2})
        job.report("done")
        assert (job.states(), kept(job)) == ([8], [8, 16])
        assert runs.summary(job)["resumable"]
        with pytest.raises(UserError, match="2 measures past its best already"):
            resume_run.prepare(folders(project), job, {"intervals.patience": "2"})
        assert resume_run.prepare(folders(project), job, {}) == {"intervals.patience": 0}
        rest = iter(course[4:])
        patched.setattr(Validation, "measure", lambda self: ValidationResult(next(rest), 0.5, None))
        AcceleratorState._reset_state(reset_partial_state=True)
        assert worker.run(job) == "done"
    job.report("done")
    assert same(output(whole), output(job))
    assert [one.held_out for one in job.story().measures] == [0.0, *course]
    assert kept(job)[-1] == 24 and 8 not in kept(job), "what was only the best goes for a better one"
    assert not job.states() and not (job.folder / BEFORE).exists()
    with pytest.raises(UserError, match=r"it is done. A new run learns on .* lora.start_file .*_24-2.safetensors"):
        resume_run.prepare(folders(project), job, {})


def test_a_run_that_was_killed_before_it_could_say_that_it_ended_by_its_patience_can_still_go_on(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Validation, "measure", goes(0.1, 0.3, 0.2, 0.1, 0.0, 0.0))
    job = train(project, **HELD, **{"intervals.patience": 2})
    AcceleratorState._reset_state(reset_partial_state=True)
    assert worker.run(job) == "done"
    assert job.states() == [8]


def test_a_last_state_that_cannot_be_written_ends_no_run(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Validation, "measure", goes(0.1, 0.3, 0.2, 0.1, 0.0, 0.0))

    def full(*_: object) -> Path:
        raise NotSaved("The disk is full.")

    monkeypatch.setattr(state, "save", full)
    job = train(project, **HELD, **{"intervals.patience": 2})
    (said,) = told(job, "warning")
    assert said["text"] == "The disk is full. The result is written; the run can only go on from an earlier state."
    job.report("done")
    assert not runs.summary(job)["resumable"]


# ---- what is shown of it


PREVIEWS: dict[str, Any] = {"previews.count": 1, "previews.steps": 2, "intervals.save_preview_every": 0}


@pytest.mark.parametrize(
    "changes",
    [
        {"general.method": "full"},
        {"embedding.enabled": True, "concepts.0.instance_token": "sks"},
        {"lora.kind": "loha", "tuning.text_encoder_ratio": 1.0},
        {"memory.unet_weights": "streamed", "batching.gradient_checkpointing": True, "tuning.use_ema": True},
    ],
)
def test_the_best_is_shown_as_it_was_when_it_was_best(
    project: Project, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pictures of its file are those that the run would have drawn then."""
    course, own = (0.1, 0.3, 0.2, 0.25, 0.1, 0.0), {**HELD, **PREVIEWS, "saving.half_model": False, **changes}
    monkeypatch.setattr(Validation, "measure", goes(*course))
    job = train(project, **own)
    monkeypatch.setattr(Validation, "measure", goes(*course))
    often = train(project, **{**own, "intervals.save_preview_every": 2})
    assert [event["images"] for event in told(job, "preview")] == [0, 24, 8]
    assert [event["images"] for event in told(often, "preview")] == [0, 8, 16, 24]
    later, then = (Path(one.story().previews[8][0]) for one in (job, often))
    assert likeness(later, then) < 2
    assert likeness(later, Path(job.story().previews[24][0])) > 0
    assert same(output(job), output(often))
    with Image.open(job.folder / "previews.png") as sheet, Image.open(often.folder / "previews.png") as wider:
        assert sheet.width < wider.width


def likeness(one: Path, other: Path) -> float:
    """How far two pictures differ at most, of 255."""
    with Image.open(one) as first, Image.open(other) as second:
        return max(high for _, high in ImageChops.difference(first.convert("RGB"), second.convert("RGB")).getextrema())


def test_whoever_asks_for_an_end_waits_for_no_previews_of_the_best(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Validation, "measure", goes(0.1, 0.3, 0.2, 0.25, 0.1, 0.0))

    def interrupted(*_: object) -> None:
        raise Asked("stopped")

    monkeypatch.setattr(best, "draw", interrupted)
    job = train(project, **HELD, **PREVIEWS)
    assert [event["images"] for event in told(job, "preview")] == [0, 24]
    assert kept(job) == [8, 24]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "not enough for previews of the best"),
        (OSError(28, "No space"), "No space"),
    ],
)
def test_trouble_with_previews_of_the_best_ends_no_run(
    project: Project, error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Validation, "measure", goes(0.1, 0.3, 0.2, 0.25, 0.1, 0.0))
    drawn = preview.make

    def fails(*arguments: Any, **named: Any) -> list[Path]:
        if arguments[3] == 8:
            raise error
        return drawn(*arguments, **named)

    monkeypatch.setattr(preview, "make", fails)
    job = train(project, **HELD, **PREVIEWS)
    assert any(said in event["text"] for event in told(job, "warning"))
    assert kept(job) == [8, 24]


def test_a_best_that_vanishes_while_it_is_to_be_drawn_ends_no_run(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Validation, "measure", goes(0.1, 0.3, 0.2, 0.25, 0.1, 0.0))
    outlines = lora_header.outlines

    def vanishing(header: Any, *rest: Any) -> Any:
        header.path.unlink()
        return outlines(header, *rest)

    monkeypatch.setattr(lora_header, "outlines", vanishing)
    job = train(project, **HELD, **PREVIEWS)
    (said,) = [event["text"] for event in told(job, "warning") if "no previews" in event["text"]]
    assert "_8.safetensors: it cannot be read (No such file or directory)" in said


@pytest.mark.thorough
def test_a_run_that_paused_measures_as_one_that_did_not(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, job = train(project, **HELD), new_run(project, **HELD)
    with monkeypatch.context() as patched:
        asked = lambda hooks: {"pause"} if hooks.session.step == 5 else set()  # noqa: E731
        patched.setattr(worker.RunHooks, "requests", asked)
        AcceleratorState._reset_state(reset_partial_state=True)
        assert worker.run(job) == "paused"
    AcceleratorState._reset_state(reset_partial_state=True)
    assert worker.run(job) == "done"
    assert job.story().measures == whole.story().measures
    assert not (job.folder / BEFORE).exists()
    assert kept(job) == kept(whole)
    assert same(output(whole), output(job))


@pytest.mark.thorough
@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_that_lost_what_it_is_measured_against_goes_on_without(
    project: Project, damaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new_run(project, **HELD)
    with monkeypatch.context() as patched:
        asked = lambda hooks: {"pause"} if hooks.session.step == 5 else set()  # noqa: E731
        patched.setattr(worker.RunHooks, "requests", asked)
        AcceleratorState._reset_state(reset_partial_state=True)
        assert worker.run(job) == "paused"
    (job.folder / BEFORE).unlink()
    if damaged:
        (job.folder / BEFORE).write_bytes(b"{" * 100)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert worker.run(job) == "done"
    assert [event["step"] for event in told(job, "measured")] == [0, 2, 4]


@pytest.mark.parametrize(
    ("error", "said"),
    [(torch.OutOfMemoryError("CUDA out of memory."), "not enough to measure"), (OSError(28, "No space"), "No space")],
)
def test_trouble_with_measuring_ends_no_run(
    project: Project, error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Validation) -> None:
        raise error

    monkeypatch.setattr(Validation, "measure", fails)
    job = train(project, **HELD)
    assert any(said in event["text"] for event in told(job, "warning"))
    assert kept(job) == [24]
