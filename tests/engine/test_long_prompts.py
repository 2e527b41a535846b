"""Prompts of more than 75 tokens and clip skip: read as the WebUI reads them, everywhere alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth.core import emphasis, project
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.project import Folders
from dreambooth.core.settings import parse
from dreambooth.engine import families, generate, plan, worker
from dreambooth.engine.families.model import Model
from dreambooth.engine.families.text_encoding import TextEmbedding
from dreambooth.engine.prompts import chunking
from dreambooth.engine.prompts.vocabulary import clip_tokenizer
from dreambooth.engine.training import text_embeddings
from dreambooth.engine.training.text_embeddings import Texts
from dreambooth.service import launcher
from tests.engine import tiny
from tests.engine.runs import new_run, tiny_project, told

LONG = ", ".join(["a red star on a white background"] * 20)  # 160 tokens
BEGIN, END = 49406, 49407


@pytest.fixture(scope="module")
def miniature() -> Model:
    return families.load_file(MINIATURE)


@pytest.fixture
def model(miniature: Model) -> Any:
    yield miniature
    miniature.configure_prompts(75, 1)


@pytest.fixture(scope="module", params=["sd2", "sdxl"])
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path: Path = tmp_path_factory.mktemp("other") / "x.safetensors"
    return families.load_file(tiny.write_original(path, request.param))


@settings(deadline=None, max_examples=30)
@given(st.text(max_size=200) | st.just(LONG))
def test_one_piece_is_what_the_tokenizer_itself_makes(miniature: Model, prompt: str) -> None:
    plain = emphasis.bare(prompt, weighted=False)
    theirs = clip_tokenizer()(plain, padding="max_length", max_length=77, truncation=True).input_ids
    assert miniature.tokenize([prompt])[0][0].tolist() == theirs


def test_each_piece_has_its_own_marks_and_is_encoded_alone(model: Model) -> None:
    model.configure_prompts(225, 1)
    tokens = model.tokenize([LONG, "a star"])[0]
    assert tokens.shape == (2, 3 * 77)
    assert tokens[:, [0, 77, 154]].unique().tolist() == [BEGIN]
    assert tokens[:, [76, 153, 230]].unique().tolist() == [END]
    whole = model.encode_text([LONG, "a star"]).hidden
    for piece in range(3):
        own = tokens[:, piece * 77 : piece * 77 + 77]
        alone = model.text_encoders["text_encoder"](own).last_hidden_state
        assert torch.allclose(whole[:, piece * 77 : piece * 77 + 77], alone, atol=1e-5)


def test_a_short_prompt_begins_alike_and_goes_on_with_nothing(model: Model) -> None:
    short, nothing = model.encode_text(["a star", ""]).hidden
    model.configure_prompts(150, 1)
    longer = model.encode_text(["a star"]).hidden[0]
    assert torch.allclose(longer[:77], short, atol=1e-5)
    assert torch.allclose(longer[77:], nothing, atol=1e-5)


def test_what_comes_late_in_a_prompt_counts_only_where_it_is_read(model: Model) -> None:
    for length, same in ((75, True), (150, True), (225, False)):
        model.configure_prompts(length, 1)
        one, other = model.encode_text([LONG, LONG.removesuffix("white background") + "purple heart"]).hidden
        assert torch.allclose(one, other) == same, length


def test_what_is_cut_is_known(model: Model) -> None:
    for length, cut in ((75, True), (150, True), (225, False)):
        model.configure_prompts(length, 1)
        assert (model.is_truncated(LONG), model.is_truncated("a star")) == (cut, False)


def test_clip_skip_reads_an_earlier_block_with_the_last_normalization(model: Model) -> None:
    tokens = model.tokenize(["a red star"])[0]
    encoder = model.text_encoders["text_encoder"]
    states = encoder(tokens, output_hidden_states=True).hidden_states
    plain = model.encode_text(["a red star"]).hidden
    for skip in (1, 2, 3):
        model.configure_prompts(75, skip)
        read = model.encode_text(["a red star"]).hidden
        assert torch.allclose(read, encoder.final_layer_norm(states[-skip]), atol=1e-5)
        assert torch.allclose(read, plain, atol=1e-5) == (skip == 1)


def test_a_clip_skip_that_cannot_be_is_refused(model: Model, other: Model) -> None:
    with pytest.raises(UserError, match=r"tuning\.clip_skip: it is 5, but this text encoder has 4 blocks"):
        model.configure_prompts(75, 5)
    with pytest.raises(UserError, match=r"tuning\.clip_skip: it is 2, but SD 2 and SDXL"):
        other.configure_prompts(75, 2)


def test_the_other_families_read_pieces_too(other: Model) -> None:
    one = other.encode_text([LONG, "a star"])
    other.configure_prompts(150, 1)
    two = other.encode_text([LONG, "a star"])
    other.configure_prompts(75, 1)
    assert (one.hidden.shape[1], two.hidden.shape[1]) == (77, 154)
    assert torch.allclose(one.hidden[1], two.hidden[1, :77], atol=1e-5)
    if two.pooled is not None and one.pooled is not None:
        assert torch.allclose(one.pooled[1], two.pooled[1], atol=1e-5)
        x_t, t = torch.randn(2, 4, 8, 8), torch.tensor([5, 5])
        assert other.denoise(x_t, t, two, torch.tensor([[64, 64, 0, 0, 64, 64]] * 2)).isfinite().all()


@pytest.mark.parametrize("length", [75, 150])
def test_without_padding_the_unet_reads_the_words_and_their_marks_alone(
    model: Model, other: Model, length: int
) -> None:
    for one in (model, other):
        x_t, t, sizes = torch.randn(2, 4, 8, 8), torch.tensor([500, 500]), torch.tensor([[64, 64, 0, 0, 64, 64]] * 2)
        padded = one.encode_text(["a red star", "a heart"])
        one.configure_prompts(length, 1, pad_tokens=False)
        bare = one.encode_text(["a red star", "a heart"])
        assert bare.mask is not None
        assert bare.mask.sum(1).tolist() == [5, 4]
        with torch.no_grad():
            together = one.denoise(x_t, t, bare, sizes)
            for n, words in enumerate((5, 4)):
                pooled = None if padded.pooled is None else padded.pooled[n : n + 1]
                text = TextEmbedding(padded.hidden[n : n + 1, :words], pooled)
                alone = one.denoise(x_t[n : n + 1], t[:1], text, sizes[:1])
                assert torch.allclose(together[n : n + 1], alone, atol=1e-4)
            assert not torch.allclose(together, one.denoise(x_t, t, padded, sizes), atol=1e-4)
        one.configure_prompts(75, 1)


def test_without_padding_a_long_prompt_keeps_all_its_pieces(model: Model) -> None:
    model.configure_prompts(225, 1, pad_tokens=False)
    mask = model.encode_text([LONG, ""]).mask
    assert mask is not None
    pieces = chunking.split(clip_tokenizer()(LONG, add_special_tokens=False).input_ids, 267)
    assert mask.reshape(2, 3, 77).sum(-1).tolist() == [[len(piece) + 2 for piece in pieces], [2, 0, 0]]


@pytest.mark.parametrize("learning", [True, False])
def test_a_dropped_caption_is_what_guidance_reads(other: Model, model: Model, learning: bool) -> None:
    for one in (other, model):
        texts = Texts(one, ["a star", ""])
        with torch.no_grad():
            numbers = torch.tensor([1, 0, 1])
            read = texts.encode(*texts.look_up(numbers)) if learning else texts.embeddings(numbers)
            nothing = one.encode_negative("", 1)
        assert torch.allclose(read.hidden[[0, 2]], nothing.hidden.expand(2, -1, -1), atol=1e-5)
        assert not torch.allclose(read.hidden[1], nothing.hidden[0], atol=1e-3)
        if read.pooled is not None and nothing.pooled is not None:
            assert torch.allclose(read.pooled[0], nothing.pooled[0], atol=1e-5)


def test_generate_reads_prompts_as_its_settings_say(tmp_path: Path) -> None:
    star = project.create(Folders(tmp_path), "star", MINIATURE)
    wanted: dict[str, Any] = {
        "prompt": LONG,
        "negative_prompt": "",
        "count": 1,
        "steps": 2,
        "seed": 1,
        "guidance_scale": 5.0,
    }
    wanted |= {"width": 64, "height": 64, "scheduler": "ddim", "batch": 1, "lora_weight": 1.0, "weights": ""}
    drawn = set()
    for chosen in ({}, {"tuning.clip_skip": 2}, {"tuning.max_token_length": 225}, {"tuning.pad_tokens": False}):
        out = tmp_path / str(len(drawn))
        job = launcher.new_errand(Folders(tmp_path), star, "generate", parse(chosen), out=str(out), **wanted)
        drawn.add(Path(generate.run(job)["pictures"][0]).read_bytes())
    assert len(drawn) == 4


def test_a_clip_skip_that_cannot_be_is_said_before_the_model_is_loaded(tmp_path: Path) -> None:
    """With whatever else cannot be."""
    made = tiny_project(tmp_path, "sd2-v")
    job = new_run(made, **{"tuning.clip_skip": 2, "memory.attention": "xformers"})
    with pytest.raises(UserError, match=r"tuning\.clip_skip: it is 2, but SD 2 and SDXL .*; set it to 1\.") as said:
        worker.run(job)
    assert [one.where for one in said.value.errors] == ["tuning.clip_skip", "memory.attention"]
    assert "loading the model" not in [event["name"] for event in told(job, "stage")]
    assert any("tuning.clip_skip: it is 2" in one for one in plan.report(job)["problems"])


@pytest.mark.parametrize("learns_of_none", [True, False])
def test_many_texts_are_read_a_part_at_a_time_into_the_computers_memory(
    other: Model, monkeypatch: pytest.MonkeyPatch, learns_of_none: bool
) -> None:
    """And so they are the same, the empty one of them too."""
    prompts = ["a star", "a cat", *([""] if learns_of_none else []), "a dog", "a moon"]
    numbers, whole = torch.tensor([3, 2, 0]), Texts(other, prompts)
    wanted = whole.embeddings(numbers)
    read, encode = list[int](), Model.encode_texts
    monkeypatch.setattr(text_embeddings, "_BATCH", 2)
    monkeypatch.setattr(text_embeddings, "MOST_ON_DEVICE", 100)
    monkeypatch.setattr(Model, "encode_texts", lambda own, some: (read.append(len(some[0])), encode(own, some))[1])
    parts = Texts(other, prompts)
    found = parts.embeddings(numbers)
    assert read == [2] * (len(prompts) // 2) + [1] * (len(prompts) % 2)
    assert parts.table is not None and parts.table.hidden.device.type == "cpu"
    for one, same in zip(found.tensors, wanted.tensors):
        assert torch.allclose(one, same, atol=1e-5)
