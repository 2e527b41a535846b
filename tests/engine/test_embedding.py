"""Textual inversion: a word that learns alone, and leaves the model as it is."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dreambooth.core import forecast, presets, project, schedules
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.job_folder import Ending, Job
from dreambooth.core.models import anatomy, checkpoint
from dreambooth.core.project import Folders, Project
from dreambooth.core.run_length import budget
from dreambooth.core.settings import parse
from dreambooth.engine import families, generate, plan, worker
from dreambooth.engine.checkpoints import words_file
from dreambooth.engine.miniature import measure
from dreambooth.engine.training import loop
from dreambooth.engine.training.loop import Hooks
from dreambooth.engine.training.session import Session
from dreambooth.engine.training.validation import Validation, ValidationResult
from dreambooth.service import exporting, launcher, runs, short_jobs, use_in_txt2img
from tests.engine import tiny
from tests.engine.runs import LORA, exported, folders, new_run, same, saved, tiny_project, told, train

ALONE: dict[str, Any] = {
    "general.method": "embedding",
    "concepts.0.instance_token": "sks",
    "embedding.vectors": 3,
    "learning.embedding_learning_rate": 1e-2,
    "batching.train_batch_size": 2,
}
SECOND = {
    "concepts.1.instance_data_dir": str(SUBJECT_PICTURES),
    "concepts.1.instance_prompt": "a zwx",
    "concepts.1.instance_token": "zwx",
}
RESTING = {"learning.embedding_learning_rate": 0.0}
PROMPT = "a photo of sks star"


def vectors(file: Path, word: str = "sks") -> dict[str, Tensor]:
    return words_file.read(checkpoint.read_header(file))[word]


def resumed(made: Project, pause_at: int, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Job:
    """A run that paused before a step and went on to its end."""
    job = new_run(made, **changes)
    with monkeypatch.context() as patched:
        patched.setattr(
            worker.RunHooks, "requests", lambda hooks: {"pause"} if hooks.session.step == pause_at else set()
        )
        AcceleratorState._reset_state(reset_partial_state=True)
        assert worker.run(job) == "paused"
    return job


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Job]:
    made = tiny_project(tmp_path_factory.mktemp("alone"))
    return made, train(made, **ALONE)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Job]:
    made = tiny_project(tmp_path_factory.mktemp("two"))
    return made, train(made, **ALONE, **SECOND, **{"saving.use_subdirectory": True})


@pytest.mark.thorough
def test_the_subject_is_learned_and_the_class_stays(tmp_path: Path) -> None:
    """On the miniature, whose own star is nothing like the subject."""
    star = project.create(Folders(tmp_path), "star", MINIATURE)
    chosen = {
        **ALONE,
        "concepts.0.instance_data_dir": str(SUBJECT_PICTURES),
        "concepts.0.instance_prompt": "a photo of [filewords]",
        "intervals.num_train_epochs": 40,
        "learning.embedding_learning_rate": 2e-2,
        "learning.scheduler": "cosine",
        "previews.count": 0,
    }
    job = launcher.new_run(Folders(tmp_path), star, parse({**star.settings(), **chosen}))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert worker.run(job) == "done"
    before, after = (generate.load(star, file) for file in ("", str(saved(job)[-1])))
    prompts = [f"{PROMPT} on a {background} background" for background in measure.BACKGROUNDS]
    found = [np.mean([measure.likeness(one) for one in measure._draw(model, prompts)]) for model in (before, after)]
    assert found[1] > 1.7 * found[0], found
    of_class = [model.encode_text(["a photo of a star"]).hidden for model in (before, after)]
    assert torch.equal(*of_class)


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_the_vectors_learn_and_not_a_bit_of_the_model(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights(session: Session) -> dict[str, Tensor]:
        parts: dict[str, nn.Module] = session.model.parts
        return {f"{part}.{name}": p.detach().clone() for part in parts for name, p in parts[part].named_parameters()}

    def watched(session: Session, hooks: Hooks) -> Ending:
        before = weights(session)
        ending = loop.train(session, hooks)
        after = weights(session)
        changed.update(name for name in before if not torch.equal(before[name], after[name]))
        asked.update(name for name, p in session.model.unet.named_parameters() if p.requires_grad or p.grad is not None)
        assert list(session.trained.parts) == ["words"]
        return ending

    changed, asked = set[str](), set[str]()
    monkeypatch.setattr(worker, "train", watched)
    made = tiny_project(tmp_path, kind)
    job = train(made, **ALONE)
    encoders = ["text_encoder", *(["text_encoder_2"] if kind == "sdxl" else [])]
    assert all(name.endswith(".learned") for name in changed)
    assert sorted(name.split(".")[0] for name in changed) == encoders
    assert not asked
    event = told(job, "saved")[-1]
    file = Path(event["path"])
    assert (event["kind"], event["bytes"]) == ("embedding", file.stat().st_size)
    header = checkpoint.read_header(made.source)
    assert event["bytes"] == pytest.approx(forecast.save_bytes(header, parse(job.settings())), rel=0.15)
    assert event["embeddings"] == {"sks": str(file)}
    assert file.parent == folders(made).embeddings
    assert not list(folders(made).loras.glob("*"))
    assert load_file(file).keys() == ({"clip_l", "clip_g"} if kind == "sdxl" else {"emb_params"})
    about = checkpoint.describe(checkpoint.read_header(file))
    assert (about.kind, about.parameters) == ("embedding", 3 * 32 * len(encoders))


@pytest.mark.parametrize(
    "changes",
    [
        {"tuning.use_ema": True, "captions.dropout": 0.3, "learning.scheduler": "cosine", "learning.warmup": 0.2},
        {"batching.gradient_checkpointing": True, "memory.unet_weights": "streamed"},
        {"optimizer.name": "adamw_schedule_free", "batching.gradient_accumulation_steps": 2},
        {"batching.gradient_checkpointing": True, "memory.unet_weights": "int8", "memory.step_in_backward": True},
    ],
)
def test_a_run_that_paused_ends_as_one_that_did_not(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny_project(tmp_path)
    longer = {**ALONE, "intervals.num_train_epochs": 4, **changes}
    wanted = vectors(saved(train(made, **longer))[-1])
    job = resumed(made, 3, monkeypatch, **longer)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert worker.run(job) == "done"
    assert same(wanted, vectors(saved(job)[-1]))
    assert not same(wanted, vectors(saved(train(made, **{**longer, **RESTING}))[-1]))


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_traced_steps_teach_the_very_same(kind: str, tmp_path: Path) -> None:
    made = tiny_project(tmp_path, kind)
    longer = {**ALONE, "intervals.num_train_epochs": 6, "batching.train_batch_size": 1}
    traced, plain = train(made, **longer), train(made, **longer, **{"tuning.trace_steps": False})
    assert same(vectors(saved(traced)[-1]), vectors(saved(plain)[-1]))
    assert not told(traced, "warning")


def test_streamed_weights_teach_the_same(tmp_path: Path) -> None:
    made, checkpointed = tiny_project(tmp_path), {"batching.gradient_checkpointing": True}
    whole = train(made, **ALONE, **checkpointed)
    streamed = train(made, **ALONE, **checkpointed, **{"memory.unet_weights": "streamed"})
    assert same(vectors(saved(whole)[-1]), vectors(saved(streamed)[-1]))


def test_no_decay_pulls_at_the_vectors_and_their_gradient_is_clipped(tmp_path: Path) -> None:
    made = tiny_project(tmp_path)
    decays = {"optimizer.weight_decay": 1.0, "optimizer.text_encoder_weight_decay": 1.0}
    plain = vectors(saved(train(made, **ALONE))[-1])
    assert same(plain, vectors(saved(train(made, **ALONE, **decays))[-1]))
    lion = {**ALONE, "optimizer.name": "adamw", "optimizer.epsilon": 1.0}  # steps as long as the gradients are
    short, free = (train(made, **lion, **{"optimizer.text_encoder_max_grad_norm": most}) for most in (1e-6, 0.0))
    first = vectors(saved(train(made, **{**ALONE, **RESTING}))[-1])["text_encoder"]
    moved = [(vectors(saved(job)[-1])["text_encoder"] - first).norm() for job in (short, free)]
    assert moved[0] < 0.1 * moved[1]


def test_what_is_drawn_with_it_is_read_with_its_word(trained: tuple[Project, Job]) -> None:
    made, job = trained
    with torch.no_grad():
        plain = generate.load(made, "").encode_text([PROMPT, "a star"]).hidden
        taught = generate.load(made, str(saved(job)[-1])).encode_text([PROMPT, "a star"]).hidden
    assert not torch.allclose(plain[0], taught[0], atol=1e-3)
    assert torch.equal(plain[1], taught[1])


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_diffusers_reads_it_as_we_do(kind: str, suffix: str, tmp_path: Path) -> None:
    made = tiny_project(tmp_path, kind)
    own = saved(train(made, **ALONE))[-1]
    file = tmp_path / f"mine{suffix}"
    exported(made, to=str(file))
    pipe = tiny.pipeline(kind)
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)  # what it is given below stays in it
    if isinstance(pipe, StableDiffusionXLPipeline):
        pipe.tokenizer_2 = copy.deepcopy(pipe.tokenizer_2)
        held = load_file(file) if suffix == ".safetensors" else torch.load(file, weights_only=True)
        for name, part in (("clip_l", ""), ("clip_g", "_2")):
            encoder, tokenizer = getattr(pipe, f"text_encoder{part}"), getattr(pipe, f"tokenizer{part}")
            pipe.load_textual_inversion(held[name], token="newword", text_encoder=encoder, tokenizer=tokenizer)
    else:
        pipe.load_textual_inversion(file, token="newword")
    with torch.no_grad():
        wanted = generate.load(made, str(own)).encode_text([PROMPT])
        read = pipe.encode_prompt(
            PROMPT.replace("sks", "newword"),
            device=torch.device("cpu"),
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
    assert torch.allclose(read[0], wanted.hidden, atol=1e-5)
    if wanted.pooled is not None:
        assert torch.allclose(read[2], wanted.pooled, atol=1e-5)


def as_a1111(content: dict[str, Any]) -> dict[str, Tensor]:
    """The vectors as A1111 takes them from what is in a file (its wiki, Textual Inversion; the three kinds that it
    knows: its own, SDXL's, and the one tensor of a concept of diffusers)."""
    if "string_to_param" in content:
        assert len(content["string_to_param"]) == 1
        return {"text_encoder": next(iter(content["string_to_param"].values())).float()}
    if "clip_g" in content and "clip_l" in content:
        return {"text_encoder": content["clip_l"].float(), "text_encoder_2": content["clip_g"].float()}
    assert len(content) == 1
    return {"text_encoder": next(iter(content.values())).float()}


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a1111_reads_it_as_we_do(kind: str, tmp_path: Path) -> None:
    made = tiny_project(tmp_path, kind)
    own = saved(train(made, **ALONE))[-1]
    assert same(as_a1111(load_file(own)), vectors(own))
    exported(made, to=str(tmp_path / "mine.pt"))
    content = torch.load(tmp_path / "mine.pt", weights_only=True)
    assert same(as_a1111(content), vectors(own))
    assert same(vectors(tmp_path / "mine.pt", "mine"), vectors(own)), "we call it as its file, as a WebUI does"
    if kind == "sd1":
        assert (content["name"], content["string_to_token"]) == ("mine", {"*": 265})
    exported(made, to=str(tmp_path / "half.safetensors"), half=True)
    assert all(tensor.dtype == torch.float16 for tensor in load_file(tmp_path / "half.safetensors").values())


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({"merge": 0.8, "to": "a.safetensors"}, "merge: an embedding is a word, and changes no weights"),
        ({"rank": 4, "to": "a.safetensors"}, "rank: an embedding is a word, and changes no weights"),
        ({"onto": "{source}", "to": "a.safetensors"}, "onto: an embedding is a word, and changes no weights"),
        ({"to": "a.ckpt"}, r"to: an embedding is one .safetensors or .pt file; name one"),
        ({"to": "folder"}, r"to: an embedding is one .safetensors or .pt file; name one"),
    ],
)
def test_it_is_exported_as_an_embedding_alone(
    trained: tuple[Project, Job], tmp_path: Path, wanted: dict[str, Any], sentence: str
) -> None:
    made, _ = trained
    named = {**wanted, "to": str(tmp_path / wanted["to"])}
    if "onto" in wanted:
        named["onto"] = str(made.source)
    with pytest.raises(UserError, match=sentence):
        exporting.fields(made, named)


def test_two_concepts_learn_a_word_each(of_two: tuple[Project, Job], tmp_path: Path) -> None:
    made, job = of_two
    event = told(job, "saved")[-1]
    files = {word: Path(file) for word, file in event["embeddings"].items()}
    assert [file.name for file in files.values()] == ["sd1_10-1.safetensors", "sd1_10-2.safetensors"]
    assert {file.parent for file in files.values()} == {folders(made).embeddings / "sd1"}
    assert (event["path"], event["bytes"]) == (str(files["sks"]), sum(file.stat().st_size for file in files.values()))
    for file in files.values():  # each brings the other
        assert same(vectors(file, "sks"), vectors(files["sks"], "sks"))
        assert same(vectors(file, "zwx"), vectors(files["zwx"], "zwx"))
    assert not same(vectors(files["sks"], "sks"), vectors(files["sks"], "zwx"))
    done = exported(made, to=str(tmp_path / "mine.pt"))
    assert [Path(file).name for file in done["embeddings"].values()] == ["mine-1.pt", "mine-2.pt"]
    assert done["path"] == done["embeddings"]["sks"]
    about = checkpoint.read_header(files["zwx"]).metadata
    assert about["modelspec.trigger_phrase"] == "zwx"


def test_the_webuis_prompt_has_the_embeddings_names(of_two: tuple[Project, Job]) -> None:
    made, job = of_two
    use = use_in_txt2img.use(folders(made), job, saved(job)[-1])
    assert use == use_in_txt2img.Use("a photo of sd1_10-1 star", "")
    asked = {"prompt": "a zwx and SKS", "steps": 1, "guidance_scale": 5.0, "width": 0, "height": 0}
    other = Path(told(job, "saved")[-1]["embeddings"]["zwx"])
    again = use_in_txt2img.use_picture(folders(made), made, {**asked, "negative_prompt": ""}, 1, str(other), 1.0)
    assert again is not None
    assert again.prompt == "a sd1_10-2 and sd1_10-1"
    plain = use_in_txt2img.use_picture(
        folders(made), made, {**asked, "prompt": "a cat", "negative_prompt": ""}, 1, str(other), 1
    )
    assert plain is not None
    assert plain.prompt == "a cat, sd1_10-2"


def test_a_webui_sees_by_the_folders_time_that_one_is_new(of_two: tuple[Project, Job]) -> None:
    made, _ = of_two
    os.utime(folders(made).embeddings, (0, 0))
    again = saved(train(made, **ALONE, **{"saving.use_subdirectory": True, "intervals.max_train_steps": 1}))[-1]
    assert again.parent == folders(made).embeddings / "sd1"
    assert folders(made).embeddings.stat().st_mtime > 0


def test_no_two_have_one_name(trained: tuple[Project, Job]) -> None:
    """In whichever of the two folders they lie: a WebUI knows them by their names alone."""
    made, job = trained
    again = saved(train(made, **ALONE, **{"saving.use_subdirectory": True}))[-1]
    assert (again.parent.name, again.stem) == ("sd1", f"{saved(job)[-1].stem}-2")
    lora = {**ALONE, **LORA, "embedding.enabled": True}
    assert saved(train(made, **lora))[-1].stem not in (again.stem, saved(job)[-1].stem)


def test_it_is_listed_drawn_on_a_sheet_and_drawn_of_a_state(
    trained: tuple[Project, Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made, job = trained
    file = str(saved(job)[-1])
    assert (runs.outputs(made)[-1]["path"], runs.outputs(made)[-1]["kind"]) == (file, "embedding")
    paused = resumed(made, 2, monkeypatch, **ALONE)
    states: list[Any] = [{"run": int(paused.folder.name), "from_step": 2}]
    asked = {"prompt": PROMPT, "steps": 2, "width": 64, "height": 64, "out": str(tmp_path)}
    wanted = {**asked, "sheet": {"weights": ["", file, *states], "lora_weights": [0.5, 1.0]}}
    chosen, made_of = short_jobs.sheet(made, wanted)
    assert [row["kind"] for row in made_of["rows"]] == ["base", "embedding", "embedding"]
    done = generate.run(launcher.new_errand(folders(made), made, "generate", chosen, **made_of))
    pictures = [Path(path) for path in done["pictures"]]
    assert [path.name for path in pictures] == ["00-00.png", "01-00.png", "02-00.png"], "it has no weight"
    assert len({path.read_bytes() for path in pictures}) == 3
    chosen, fields = short_jobs.drawing(made, {**asked, "weights": file})
    [alone] = generate.run(launcher.new_errand(folders(made), made, "generate", chosen, **fields))["pictures"]
    assert Path(alone).is_file()
    done = exported(made, **states[0])
    assert Path(done["path"]).parent == folders(made).embeddings
    assert told(paused, "exported")[-1]["kind"] == "embedding"


def test_a_later_best_takes_the_place_of_the_former(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of the best, which is not the last, previews are drawn."""

    def measured(self: Validation) -> ValidationResult:
        gains = {0: 0.0, 2: 0.1, 4: 0.2, 6: 0.1, 8: 0.1}
        return ValidationResult(gains[self.session.step], gains[self.session.step], None)

    monkeypatch.setattr(Validation, "measure", measured)
    held = {"concepts.0.held_out": 1, "intervals.validate_every": 1, "intervals.num_train_epochs": 4}
    shown = {"previews.count": 1, "previews.steps": 1, "intervals.save_preview_every": 0}
    job = train(tiny_project(tmp_path), **{**ALONE, **held, **shown})
    written, removed = [event["path"] for event in told(job, "saved")], [e["path"] for e in told(job, "removed")]
    assert removed == written[:1]
    there = {str(path) for path in Path(written[0]).parent.iterdir()}
    assert there == set(written[1:])
    assert len(there) == 2
    best = [path for path in Path(written[0]).parent.iterdir() if path.stem.endswith("_8")]
    assert [event["images"] for event in told(job, "preview")] == [0, 16, 8]
    assert len(best) == 1


LEARNED = torch.linspace(-1, 1, 2 * 32).reshape(2, 32)


class Legacy(nn.Module):
    """What the first textual inversions wrote: the parameters as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.held = nn.ParameterDict({"*": nn.Parameter(LEARNED.clone())})


def start_of(kind: str, folder: Path) -> Path:
    """An embedding as another program has written it."""
    file = (
        folder
        / f"start of {kind}.{'safetensors' if kind in ('kohya', 'sdxl') else 'pt' if kind != 'diffusers' else 'bin'}"
    )
    if kind == "kohya":
        save_file({"emb_params": LEARNED.half()}, file)
    elif kind == "sdxl":
        save_file({"clip_l": LEARNED, "clip_g": -LEARNED}, file)
    elif kind == "a1111":
        torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": LEARNED}, "name": "x", "step": 7}, file)
    elif kind == "first":
        torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": Legacy().held}, file)
    elif kind == "legacy zip":
        torch.save({"string_to_param": {"*": LEARNED}}, file, _use_new_zipfile_serialization=False)
    else:
        torch.save({"<mine>": LEARNED[0]}, file)
    return file


@pytest.mark.parametrize("kind", ["kohya", "sdxl", "a1111", "first", "legacy zip", "diffusers"])
def test_a_run_goes_on_from_an_embedding_of_any_trainer(kind: str, tmp_path: Path) -> None:
    made = tiny_project(tmp_path, "sdxl" if kind == "sdxl" else "sd1")
    start = {"embedding.start_file": str(start_of(kind, tmp_path))}
    learned = LEARNED[:1] if kind == "diffusers" else LEARNED
    wanted = {"text_encoder": learned.half().float() if kind == "kohya" else learned}
    wanted |= {"text_encoder_2": -LEARNED} if kind == "sdxl" else {}
    assert same(vectors(saved(train(made, **{**ALONE, **start, **RESTING}))[-1]), wanted)


def test_a_run_goes_on_from_its_own_and_so_does_a_lora(of_two: tuple[Project, Job]) -> None:
    made, job = of_two
    start = {"embedding.start_file": told(job, "saved")[-1]["embeddings"]["zwx"]}
    both = saved(train(made, **{**ALONE, **SECOND, **start, **RESTING}))[-1]
    assert same(vectors(both, "sks"), vectors(saved(job)[-1], "sks"))
    assert same(vectors(both, "zwx"), vectors(saved(job)[-1], "zwx"))
    beside = {**ALONE, **LORA, "embedding.enabled": True, "concepts.0.instance_token": "abc"}
    one = saved(train(made, **{**beside, **start, **RESTING}))[-1]
    assert same(vectors(one, "abc"), vectors(saved(job)[-1], "zwx")), "the file's own word, whatever it is called here"
    again = {**beside, "lora.start_file": str(one), **start}
    with pytest.raises(UserError, match=r"which is gone on from too; leave embedding.start_file empty"):
        train(made, **again)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("echo never",)


def bad_start(what: str, folder: Path) -> Path:
    file = folder / f"bad.{'pt' if what == 'evil' else 'safetensors'}"
    if what == "evil":
        torch.save({"string_to_param": {"*": LEARNED}, "x": Evil()}, file)
    elif what == "wide":
        save_file({"emb_params": torch.zeros(2, 768)}, file)
    elif what == "a NaN":
        save_file({"emb_params": LEARNED * float("nan")}, file)
    elif what == "cut":
        save_file({"emb_params": LEARNED}, file)
        file.write_bytes(file.read_bytes()[:-9])
    elif what == "a LoRA":
        save_file({"lora_unet_x.lora_down.weight": LEARNED, "lora_unet_x.lora_up.weight": LEARNED.T.contiguous()}, file)
    elif what == "one word":
        save_file({"emb_params": LEARNED}, file)
    return file


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("evil", "this file wants to run .*system when it is opened"),
        ("wide", "embedding.start_file: .* is of vectors of another width than this model's"),
        ("a NaN", "its vectors cannot be read; the file is damaged"),
        ("cut", "the file is cut short"),
        ("a LoRA", "embedding.start_file: .* is no embedding; name another file"),
        ("nothing", "there is no such file"),
        ("one word", "embedding.start_file: .* holds one word, and sks and zwx learn; teach one at a time"),
    ],
)
def test_what_cannot_be_gone_on_from_is_refused(what: str, sentence: str, tmp_path: Path) -> None:
    made = tiny_project(tmp_path)
    start = {"embedding.start_file": str(bad_start(what, tmp_path))}
    more = SECOND if what == "one word" else {}
    with pytest.raises(UserError, match=sentence):
        train(made, **ALONE, **start, **more)
    if what != "a NaN":  # the check reads headers alone
        job = new_run(made, **ALONE, **start, **more)
        assert any(re.search(sentence, problem) for problem in plan.report(job)["problems"])


def test_vectors_of_another_model_are_not_drawn_with(trained: tuple[Project, Job], tmp_path: Path) -> None:
    save_file({"emb_params": torch.zeros(1, 768)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="another width than this model's"):
        generate.load(trained[0], str(tmp_path / "a.safetensors"))
    with pytest.raises(UserError, match="this is no checkpoint, LoRA or embedding"):
        save_file({"x": torch.zeros(1)}, tmp_path / "b.safetensors")
        runs.weights(trained[0], str(tmp_path / "b.safetensors"), base=False)


@pytest.mark.parametrize(
    ("tensors", "kind", "family"),
    [
        ({"emb_params": (4, 768)}, "embedding", "sd1"),
        ({"emb_params": (1, 1024)}, "embedding", "sd2"),
        ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "embedding", "sdxl"),
        ({"sks": (768,)}, "embedding", "sd1"),
        ({"<cat-toy>": (1, 32)}, "embedding", "unknown"),
        ({"emb_params": (2, 2, 2)}, "unknown", "unknown"),
        ({"emb_params": (0, 768)}, "unknown", "unknown"),
        ({"x": (3,)}, "unknown", "unknown"),
    ],
)
def test_what_an_embedding_is(tensors: dict[str, tuple[int, ...]], kind: str, family: str, tmp_path: Path) -> None:
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / "a.safetensors")
    about = checkpoint.describe(checkpoint.read_header(tmp_path / "a.safetensors"))
    assert (about.kind, about.family) == (kind, family)
    with pytest.raises(UserError, match=r"textual-inversion embedding, not a whole model|holds no Stable Diffusion"):
        project.create(Folders(tmp_path / "models"), "x", tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"concepts.0.instance_token": " "}, "concepts.0.instance_token: it is empty, and general.method embedding"),
        (
            {"concepts.1.instance_prompt": "a cat", "concepts.1.instance_data_dir": "."},
            "concepts.1.instance_token: it is empty, so that its pictures teach no word",
        ),
        ({"tuning.text_encoder_ratio": 0.5}, "tuning.text_encoder_ratio: with general.method embedding a word learns"),
        ({"tuning.text_encoder_steps": 5}, "tuning.text_encoder_steps: with general.method embedding a word learns"),
        ({"tuning.unet_layers": "attention"}, "tuning.unet_layers: .* an embedding alone leaves the UNet as it is"),
        ({"memory.bf16_weights": True}, "memory.bf16_weights: an embedding alone leaves the model's weights"),
        ({"memory.unet_weights": "nf4"}, "memory.unet_weights: .* turn batching.gradient_checkpointing on"),
        ({"imagic.enabled": True}, "imagic.enabled: it trains the model too, which general.method embedding does not"),
        (
            {"concepts.0.num_class_images_per": 2, "concepts.0.class_prompt": "a star"},
            "concepts.0.num_class_images_per: with general.method embedding only the word changes .* set it to 0",
        ),
        (
            {"concepts.0.class_mode": "prediction", "concepts.0.class_prompt": "a star"},
            "concepts.0.class_mode: with general.method embedding only the word changes .* set it to off",
        ),
        (
            {"optimizer.name": "prodigy", "learning.embedding_learning_rate": 1e-3},
            "learning.embedding_learning_rate: .* prodigy finds the rate itself",
        ),
    ],
)
def test_what_does_not_go_with_a_word_alone_is_refused(changes: dict[str, Any], sentence: str) -> None:
    flat = {**ALONE, "concepts.0.instance_prompt": PROMPT}
    parse(flat)
    with pytest.raises(UserError, match=sentence):
        parse({**flat, **changes})


def test_a_preset_asks_for_no_class_pictures() -> None:
    person = presets.find("person")
    flat = presets.apply(person, {"concepts.0.num_class_images_per": 3, **ALONE})
    assert flat["concepts.0.num_class_images_per"] == 0
    parse(flat)
    assert presets.apply(person, {})["concepts.0.num_class_images_per"] == 5


def test_its_rate_is_the_only_one_and_lasts_to_the_end() -> None:
    chosen = parse({**ALONE, "embedding.ratio": 0.5})
    drawn = schedules.curve(chosen, budget(chosen, 10))
    assert {point["words"] for point in drawn} == {1e-2}
    assert {point["unet"] for point in drawn} == {0.0}


def test_what_it_trains_is_counted() -> None:
    header = checkpoint.read_header(MINIATURE)
    model = families.load_file(MINIATURE)
    widths = [encoder.get_input_embeddings().embedding_dim for encoder in model.text_encoders.values()]
    assert anatomy.of(header).trained(parse(ALONE)) == 3 * sum(widths)
    assert anatomy.of(header).word == sum(widths)
