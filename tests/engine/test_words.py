"""A word that learns vectors of its own beside a LoRA."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from dreambooth.core import learned_words as words_module
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.models import checkpoint
from dreambooth.core.project import Project
from dreambooth.core.settings import parse
from dreambooth.engine import families, from_state, generate, worker
from dreambooth.engine.checkpoints import lora_header, words_file
from dreambooth.engine.checkpoints.source import open_model
from dreambooth.engine.families.model import Model
from dreambooth.engine.prompts import textual_inversion
from dreambooth.engine.prompts.textual_inversion import LearnedTokens
from dreambooth.engine.run import outputs
from dreambooth.service import launcher, use_in_txt2img
from dreambooth.service.models import inspect
from tests.engine import tiny
from tests.engine.runs import LORA, exported, folders, new_run, output, same, saved, tiny_project, told, train

WORD: dict[str, Any] = {
    **LORA,
    "embedding.enabled": True,
    "embedding.vectors": 3,
    "concepts.0.instance_token": "sks",
    "learning.embedding_learning_rate": 1e-2,
    "batching.train_batch_size": 2,
}
PROMPT = "a photo of sks star, SKS again"


@pytest.fixture(params=["sd1", "sd2", "sdxl"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(kind: str, tmp_path: Path) -> Model:
    return families.load_file(tiny.write_original(tmp_path / f"{kind}.safetensors", kind))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return tiny_project(tmp_path)


def own(model: Model, text: str, count: int) -> dict[str, torch.Tensor]:
    """The vectors that a text has already."""
    return {
        part: textual_inversion.initial_vectors(encoder, model.tokenizers[part], text, count)
        for part, encoder in model.text_encoders.items()
    }


@torch.no_grad()
def test_a_word_with_the_vectors_that_it_has_already_reads_as_before(model: Model) -> None:
    plain = model.encode_text([PROMPT])
    model.set_learned_tokens({"sks": own(model, "sks", 1)})
    read = model.encode_text([PROMPT])
    assert torch.equal(read.hidden, plain.hidden)
    if plain.pooled is not None and read.pooled is not None:
        assert torch.equal(read.pooled, plain.pooled)
    model.set_learned_tokens({"sks": {part: one + 1 for part, one in own(model, "sks", 1).items()}})
    assert not torch.allclose(model.encode_text([PROMPT]).hidden, plain.hidden)
    model.set_learned_tokens({})
    assert torch.equal(model.encode_text([PROMPT]).hidden, plain.hidden)


@torch.no_grad()
def test_a_word_of_several_vectors_reads_as_the_words_that_they_are_of(model: Model) -> None:
    model.set_learned_tokens({"sks": own(model, "big red dog", 3)})
    read, wanted = model.encode_text(["a photo of sks, sks"]), None
    model.set_learned_tokens({})
    wanted = model.encode_text(["a photo of big red dog, big red dog"])
    assert torch.equal(read.hidden, wanted.hidden)


def test_the_longest_word_is_found_and_never_half_of_another(model: Model) -> None:
    part, tokenizer = next(iter(model.tokenizers.items()))
    vocabulary = model.text_encoders[part].get_input_embeddings().num_embeddings
    found = LearnedTokens(tokenizer, vocabulary, {"sks": 1, "sks dog": 2, "anna-dog": 1})
    numbers = textual_inversion.token_ids(tokenizer, "sks dog, sks cat, sksy, Anna-Dog dog")
    new = [number - vocabulary for number in found.replace_words(numbers) if number >= vocabulary]
    assert new == [1, 2, 0, 3]


def test_a_prompt_with_a_word_of_many_vectors_can_be_too_long(model: Model) -> None:
    prompt = "a photo of sks" + " star" * 60
    assert not model.is_truncated(prompt)
    model.set_learned_tokens({"sks": own(model, "sks", 32)})
    assert model.is_truncated(prompt)
    assert all(len(read[0]) == 77 for read in model.tokenize([prompt]))


@pytest.mark.parametrize("length", [75, 150])
def test_a_word_at_the_end_of_a_piece_is_read_whole_or_not_there(model: Model, length: int) -> None:
    model.configure_prompts(length, 1)
    model.set_learned_tokens({"sks": own(model, "sks", 3)})
    part, tokenizer = next(iter(model.tokenizers.items()))
    vocabulary = model.text_encoders[part].get_input_embeddings().num_embeddings
    for stars, where in ((72, [73, 74, 75]), (73, [78, 79, 80] if length == 150 else [])):
        [row] = model.tokenize([" ".join(["star"] * stars) + " sks cat"])[0].tolist()
        assert [at for at, number in enumerate(row) if number >= vocabulary] == where
        assert len(row) == length // 75 * 77
    assert row[74] == tokenizer.eos_token_id


def test_vectors_of_another_model_are_refused(model: Model) -> None:
    with pytest.raises(UserError, match="another width than this model's"):
        model.set_learned_tokens({"sks": {part: torch.zeros(1, 7) for part in model.text_encoders}})
    with pytest.raises(UserError, match="was not made for this model"):
        model.set_learned_tokens({"sks": {"another": torch.zeros(1, 7)}})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Job]:
    made = tiny_project(tmp_path_factory.mktemp("words"))
    return made, train(made, **WORD, **{"intervals.num_train_epochs": 2})


def vectors(file: Path) -> dict[str, torch.Tensor]:
    return words_file.read(checkpoint.read_header(file))["sks"]


def test_a_run_teaches_the_word_and_writes_it_twice(trained: tuple[Project, Job]) -> None:
    project, job = trained
    file = saved(job)[-1]
    within, embedding = vectors(file), load_file(folders(project).embeddings / file.name)
    assert told(job, "saved")[-1]["embeddings"] == {"sks": str(folders(project).embeddings / file.name)}
    assert embedding.keys() == {"emb_params"}
    assert torch.equal(embedding["emb_params"], within["text_encoder"])
    before = own(generate.load(project, ""), "sks", 3)["text_encoder"]
    assert (within["text_encoder"] - before).abs().max() > 1e-2
    assert not any("te_" in name for name in load_file(file)), "nothing else of the text encoder learns"


def test_a_run_that_is_discarded_while_it_writes_leaves_no_embedding(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, place = new_run(project, **WORD), folders(project).embeddings

    def discarded(*_: Any) -> None:
        assert list(place.glob("*.safetensors"))
        job.request("discard")
        raise KeyboardInterrupt

    monkeypatch.setattr(outputs, "write_lora", discarded)
    assert worker.run(job) == "discarded"
    assert not list(place.rglob("*.safetensors"))


def test_words_that_are_written_no_further_leave_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = words_file.write

    def short(target: Path, *rest: Any) -> None:
        if list(tmp_path.iterdir()):
            raise MemoryError
        write(target, *rest)

    monkeypatch.setattr(words_file, "write", short)
    vectors = {word: {"text_encoder": torch.zeros(1, 32)} for word in ("one", "two")}
    with pytest.raises(MemoryError):
        words_file.write_embeddings(tmp_path, "star", "sd1", vectors, {})
    assert not list(tmp_path.iterdir())


def test_what_is_drawn_with_a_lora_is_read_with_its_word(trained: tuple[Project, Job]) -> None:
    project, job = trained
    file = saved(job)[-1]
    with torch.no_grad():
        plain = generate.load(project, "").encode_text([PROMPT, "a star"]).hidden
        taught = generate.load(project, str(file)).encode_text([PROMPT, "a star"]).hidden
    assert not torch.allclose(plain[0], taught[0], atol=1e-3)
    assert torch.equal(plain[1], taught[1])


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_diffusers_reads_the_lora_and_the_embedding_as_we_do(kind: str, tmp_path: Path) -> None:
    project = tiny_project(tmp_path, kind)
    job = train(project, **WORD)
    file, pipe = saved(job)[-1], tiny.pipeline(kind)
    vectors = load_file(folders(project).embeddings / file.name)
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)  # what it is given below stays in it
    if isinstance(pipe, StableDiffusionXLPipeline):
        pipe.tokenizer_2 = copy.deepcopy(pipe.tokenizer_2)
        for name, part in (("clip_l", ""), ("clip_g", "_2")):
            encoder, tokenizer = getattr(pipe, f"text_encoder{part}"), getattr(pipe, f"tokenizer{part}")
            pipe.load_textual_inversion(vectors[name], token="newword", text_encoder=encoder, tokenizer=tokenizer)
    else:
        assert isinstance(pipe, StableDiffusionPipeline)
        pipe.load_textual_inversion(folders(project).embeddings / file.name, token="newword")
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    with torch.no_grad():
        wanted = generate.load(project, str(file)).encode_text(["a photo of sks star"])
        read = pipe.encode_prompt(
            "a photo of newword star",
            device=torch.device("cpu"),
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
    assert torch.allclose(read[0], wanted.hidden, atol=1e-5)
    if wanted.pooled is not None:
        assert torch.allclose(read[2], wanted.pooled, atol=1e-5)


def test_the_word_rests_after_its_share_of_the_run(project: Project) -> None:
    """And what it was at the end of that share it stays."""
    longer = {
        **WORD,
        "intervals.num_train_epochs": 8,
        "intervals.save_model_every": 4,
        "learning.scheduler": "constant",
    }
    half, whole = saved(train(project, **longer)), saved(train(project, **longer, **{"embedding.ratio": 1.0}))
    assert torch.equal(vectors(half[0])["text_encoder"], vectors(half[1])["text_encoder"])
    assert not torch.equal(vectors(whole[0])["text_encoder"], vectors(whole[1])["text_encoder"])
    assert not same(load_file(half[0]), load_file(half[1]))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tuning.use_ema": True, "captions.dropout": 0.3},
        {"batching.gradient_checkpointing": True, "memory.unet_weights": "streamed"},
        {"optimizer.name": "adamw_8bit", "embedding.ratio": 1.0},
        {"concepts.0.class_mode": "prediction", "concepts.0.class_prompt": "a photo of a star"},
    ],
)
def test_a_run_that_paused_ends_as_one_that_did_not(
    project: Project, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = {**WORD, "intervals.num_train_epochs": 12, **changes}
    wanted = train(project, **longer)
    job = new_run(project, **longer)
    with monkeypatch.context() as patched:
        patched.setattr(worker.RunHooks, "requests", lambda hooks: {"pause"} if hooks.session.step == 5 else set())
        AcceleratorState._reset_state(reset_partial_state=True)
        assert worker.run(job) == "paused"
    AcceleratorState._reset_state(reset_partial_state=True)
    assert worker.run(job) == "done"
    assert same(output(wanted), output(job))
    assert same(vectors(saved(wanted)[-1]), vectors(saved(job)[-1]))


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_traced_steps_teach_the_very_same(kind: str, tmp_path: Path) -> None:
    project = tiny_project(tmp_path, kind)
    longer = {**WORD, "intervals.num_train_epochs": 16, "batching.train_batch_size": 1}
    traced, plain = train(project, **longer), train(project, **longer, **{"tuning.trace_steps": False})
    assert same(output(traced), output(plain))
    assert same(vectors(saved(traced)[-1]), vectors(saved(plain)[-1]))


def as_a1111_finds_it(file: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The words of a LoRA's file by the text encoder, as A1111's extensions-builtin/Lora takes them from its keys."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(file).items():
        layer, _, rest = name.partition(".")
        if layer == "bundle_emb":
            word, key = rest.split(".", 1)
            kind = key.split(".")[0]
            part = {"clip_g": "text_encoder_2", "clip_l": "text_encoder", "string_to_param": "text_encoder"}[kind]
            found.setdefault(word, {})[part] = tensor
    return found


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_lora_that_holds_its_word_is_read_as_webuis_read_it(kind: str, tmp_path: Path) -> None:
    """And that of another trainer, which says nothing else of its word, is gone on from."""
    project = tiny_project(tmp_path, kind)
    file = saved(train(project, **WORD, **{"saving.embedding_in_lora": True}))[-1]
    within = vectors(file)
    assert same(as_a1111_finds_it(file)["sks"], within)
    bare, names = tmp_path / "bare.safetensors", [name for name in load_file(file) if not name.startswith("bundle")]
    save_file(load_file(file), bare)
    assert same(vectors(bare), within)
    assert inspect(bare)["trained_words"] == ["sks"]
    layers = lora_header.outlines(lora_header.open_file(bare), open_model(project).tensors, kind)
    assert sum(len(layer.tensors) for layer in layers.values()) == len(names)
    on = {"lora.start_file": str(bare), "intervals.max_train_steps": 1}
    rested = {"learning.embedding_learning_rate": 1e-30, "optimizer.weight_decay": 0}
    again = saved(train(project, **{**WORD, **on, **rested}))[-1]
    assert all(torch.allclose(vectors(again)[part], one, atol=1e-6) for part, one in within.items())
    assert not as_a1111_finds_it(again), "only where it is asked for"
    with pytest.raises(UserError, match="was trained with an embedding"):
        train(project, **{**LORA, **on})
    copy_of_it = tmp_path / "copy.safetensors"
    exported(project, weights=str(file), to=str(copy_of_it))
    assert same(as_a1111_finds_it(copy_of_it)["sks"], within)


def test_a_word_with_a_dot_cannot_be_held_by_a_lora() -> None:
    asked = {**WORD, "concepts.0.instance_token": "v1.5", "saving.embedding_in_lora": True}
    with pytest.raises(UserError, match=r"saving\.embedding_in_lora: .* as v1\.5; turn it off"):
        parse(asked)
    parse({**asked, "saving.embedding_in_lora": False})


def test_damaged_words_of_another_trainers_lora_are_told(tmp_path: Path) -> None:
    file = saved(train(tiny_project(tmp_path), **WORD, **{"saving.embedding_in_lora": True}))[-1]
    tensors = {name: tensor for name, tensor in load_file(file).items() if "bundle" not in name}
    save_file({**tensors, "bundle_emb.sks.unknown": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"a\.safetensors: its vectors cannot be read; the file is damaged"):
        vectors(tmp_path / "a.safetensors")


def test_a_word_begins_as_the_text_that_is_given(project: Project) -> None:
    """Where its rate is 0 it stays so."""
    resting = {"learning.embedding_learning_rate": 0.0, "embedding.initial_text": "a big red dog"}
    within = vectors(saved(train(project, **{**WORD, **resting}))[-1])
    assert same(within, own(generate.load(project, ""), "a big red", 3))


def test_a_state_is_drawn_with_its_word(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    job = new_run(project, **WORD, **{"intervals.num_train_epochs": 4})
    monkeypatch.setattr(worker.RunHooks, "requests", lambda hooks: {"pause"} if hooks.session.step == 3 else set())
    AcceleratorState._reset_state(reset_partial_state=True)
    assert worker.run(job) == "paused"
    errand = launcher.new_run(folders(project), project, parse({}))
    asked = {"weights": "", "run": int(job.folder.name), "from_step": 3}
    with from_state.as_file(project, errand, asked) as file:
        assert not same(vectors(Path(file)), own(generate.load(project, ""), "sks", 3))


@pytest.mark.parametrize(
    ("wanted", "suffix"), [({}, ".safetensors"), ({"merge": 0.8}, ".ckpt"), ({"rank": 1}, ".safetensors")]
)
def test_an_exported_lora_brings_its_embedding(
    trained: tuple[Project, Job], tmp_path: Path, wanted: dict[str, Any], suffix: str
) -> None:
    project, job = trained
    to = tmp_path / f"mine{suffix}"
    made = exported(project, weights=str(saved(job)[-1]), to=str(to), **wanted)["embeddings"]
    assert to.is_file()
    assert made == {"sks": str(tmp_path / "mine-embedding.safetensors")}
    assert torch.equal(load_file(made["sks"])["emb_params"], vectors(saved(job)[-1])["text_encoder"])
    if to.suffix == ".safetensors":
        assert same(vectors(to), vectors(saved(job)[-1])), "the LoRA is never without its word"


def test_a_run_goes_on_from_a_lora_and_its_word(trained: tuple[Project, Job]) -> None:
    project, job = trained
    start = {"lora.start_file": str(saved(job)[-1])}
    resting = {"learning.embedding_learning_rate": 0.0, "learning.lora_learning_rate": 0.0}
    further = train(project, **{**WORD, **start, **resting})
    assert same(vectors(saved(job)[-1]), vectors(saved(further)[-1]))
    with pytest.raises(UserError, match=r"was trained with an embedding, .* turn embedding.enabled on"):
        train(project, **{**LORA, **start})


def test_the_webuis_prompt_has_the_embeddings_name(trained: tuple[Project, Job], tmp_path: Path) -> None:
    project, job = trained
    use = use_in_txt2img.use(folders(project), job, saved(job)[-1])
    assert use is not None
    assert use.prompt == "a photo of sd1_10 star <lora:sd1_10:1>"
    about = checkpoint.read_header(saved(job)[-1]).metadata
    called = words_module.names(saved(job)[-1], about)
    said = words_module.in_webui("a sks dog, sksy, (SKS:1.2)", called, folders(project).embeddings)
    assert said == "a sd1_10 dog, sksy, (sd1_10:1.2)"
    assert words_module.in_webui("a sks dog", called, tmp_path) == "a sks dog"


def test_a_name_that_an_embedding_has_is_not_free(trained: tuple[Project, Job]) -> None:
    """Else a result whose LoRA is gone would lend its embedding to the next."""
    project, job = trained
    first = saved(job)[-1]
    kept = first.read_bytes()
    first.unlink()
    again = saved(train(project, **WORD, **{"intervals.num_train_epochs": 2}))[-1]
    first.write_bytes(kept)
    assert again.stem == f"{first.stem}-2"
    assert (folders(project).embeddings / again.name).is_file()


def test_two_concepts_learn_a_word_each(project: Project) -> None:
    second = {
        "concepts.1.instance_data_dir": str(SUBJECT_PICTURES),
        "concepts.1.instance_prompt": "a zwx",
        "concepts.1.instance_token": "zwx",
    }
    job = train(project, **WORD, **second)
    files = told(job, "saved")[-1]["embeddings"]
    assert [Path(file).stem for file in files.values()] == ["sd1_10-1", "sd1_10-2"]
    assert words_module.of(checkpoint.read_header(saved(job)[-1]).metadata) == ["sks", "zwx"]


@pytest.mark.parametrize(
    "said",
    [
        "{",
        "[]",
        '{"sks": 3}',
        '{"sks": {}}',
        '{"sks": {"text_encoder": [1, 2, "!"]}}',
        '{"sks": {"text_encoder": [2, 1000, "AAAA"]}}',
        json.dumps({"sks": {"text_encoder": [1, 1, "AADAfw=="]}}),  # a NaN
        "[" * 100_000,
    ],
)
def test_damaged_words_are_refused(trained: tuple[Project, Job], said: str) -> None:
    header = checkpoint.read_header(saved(trained[1])[-1])
    header.metadata[words_module.KEY] = said
    with pytest.raises(UserError, match="the words that it was trained with cannot be read; the file is damaged"):
        words_file.read(header)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"general.method": "full"}, "embedding.enabled: full fine-tuning trains every word's"),
        ({"concepts.0.instance_token": " "}, "concepts.0.instance_token: it is empty, and embedding.enabled"),
        ({"tuning.train_unet": False}, "tuning.train_unet: a word is trained beside the UNet's LoRA"),
        ({"tuning.text_encoder_ratio": 0.5}, "tuning.text_encoder_ratio: with embedding.enabled a word learns in"),
        ({"tuning.text_encoder_steps": 5}, "tuning.text_encoder_steps: with embedding.enabled a word learns in"),
        ({"imagic.enabled": True}, "embedding.enabled: with imagic.enabled the text itself is trained"),
        (
            {"optimizer.name": "prodigy", "learning.lora_learning_rate": 1.0},
            "learning.embedding_learning_rate: prodigy has one factor for both parts; set it to 1",
        ),
    ],
)
def test_what_does_not_go_with_a_word_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse({**WORD, "concepts.0.instance_prompt": "a photo of sks star", **changes})
