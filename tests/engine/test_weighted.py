"""Weights in prompts: what the UNet reads is what the WebUI makes of them, from a table and while text learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dreambooth.core import project
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.project import Folders
from dreambooth.core.settings import parse
from dreambooth.engine import families, generate
from dreambooth.engine.families.model import Model
from dreambooth.engine.training.text_embeddings import Texts
from dreambooth.service import launcher
from tests.engine import tiny
from tests.engine.runs import output, same, tiny_project, train

PROMPT, PLAIN = "a (red:1.5) star, [large]", "a red star, large"
COUNTS = {2: 1.5, 5: 1 / 1.1}  # of the tokens of PLAIN, by place; its begin mark is at 0


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path: Path = tmp_path_factory.mktemp("weighted") / "x.safetensors"
    return families.load_file(tiny.write_original(path, request.param))


def weighed(model: Model, plain: Tensor, counts: dict[int, float]) -> Tensor:
    """What the WebUI makes of (77, width): each text encoder's part times the weights, with the mean that it had."""
    made = []
    for part in plain.split([encoder.config.hidden_size for encoder in model.text_encoders.values()], dim=-1):
        scaled = part.clone()
        for place, count in counts.items():
            scaled[place] *= count
        made.append(scaled * part.mean() / scaled.mean())
    return torch.cat(made, dim=-1)


@torch.no_grad()
def test_what_the_unet_reads_is_what_the_webui_makes(model: Model) -> None:
    model.configure_prompts(150, 1)
    plain, literal = model.encode_text([PLAIN, PROMPT]).hidden
    model.configure_prompts(150, 1, weighted=True)
    read = model.encode_text([PROMPT, PLAIN])
    assert torch.allclose(read.hidden[0, :77], weighed(model, plain[:77], COUNTS), atol=1e-5)
    assert torch.equal(read.hidden[1], plain) and torch.allclose(read.hidden[0, 77:], plain[77:], atol=1e-6)
    assert not torch.allclose(literal, plain, atol=1e-3)
    if read.pooled is not None:
        assert torch.allclose(read.pooled[0], read.pooled[1], atol=1e-5)


@torch.no_grad()
def test_weights_stay_with_their_words_where_a_prompt_is_cut_into_pieces(model: Model) -> None:
    model.configure_prompts(150, 1)
    filler = "red " * 74
    plain = model.encode_text([filler + "white star"]).hidden[0]
    model.configure_prompts(150, 1, weighted=True)
    read = model.encode_text([filler + "white (star:0.5)"]).hidden[0]
    assert torch.allclose(read[:77], plain[:77], atol=1e-6)
    assert torch.allclose(read[77:], weighed(model, plain[77:], {1: 0.5}), atol=1e-5)


@torch.no_grad()
def test_text_that_learns_is_weighed_as_the_table_is(model: Model) -> None:
    model.configure_prompts(75, 1, weighted=True)
    numbers = torch.tensor([2, 0, 1])
    table = Texts(model, [PROMPT, "a star", ""]).embeddings(numbers)
    for frozen_part in ("", next(iter(model.text_encoders))):
        texts = Texts(model, [PROMPT, "a star", ""], frozen_part)
        frozen = texts.frozen_outputs(numbers)
        learning = texts.encode(*texts.look_up(numbers), frozen)
        for one, other in zip(table.tensors, learning.tensors):
            assert torch.allclose(one, other, atol=1e-5)
    assert Texts(model, [PLAIN, "a star"]).weights is None


@pytest.mark.parametrize("weighted", [True, False])
def test_a_bracket_behind_a_backslash_is_a_bracket(model: Model, weighted: bool) -> None:
    model.configure_prompts(75, 1)
    (wanted,) = model.tokenize(["tifa (ff7)"])[0].tolist()
    model.configure_prompts(75, 1, weighted=weighted)
    assert model.tokenize([r"tifa \(ff7\)"])[0].tolist() == [wanted]
    assert (model.tokenize(["tifa (ff7)"])[0].tolist() == [wanted]) is not weighted
    assert model.token_weights([r"tifa \(ff7\)"]) is None


def test_a_weighted_word_is_learned_otherwise(tmp_path: Path) -> None:
    made = tiny_project(tmp_path)
    said = {"concepts.0.instance_prompt": "a photo of (sks:1.5) star"}
    literal, read = (output(train(made, **said, **{"captions.weighted": on})) for on in (False, True))
    assert not same(literal, read)


def test_generate_weighs_words_where_the_settings_say_so(tmp_path: Path) -> None:
    star = project.create(Folders(tmp_path), "star", MINIATURE)
    wanted: dict[str, Any] = {"negative_prompt": "", "count": 1, "steps": 2, "seed": 1, "guidance_scale": 5.0}
    wanted |= {"width": 64, "height": 64, "scheduler": "ddim", "batch": 1, "lora_weight": 1.0, "weights": ""}

    def drawn(prompt: str, **chosen: Any) -> bytes:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        job = launcher.new_errand(
            Folders(tmp_path), star, "generate", parse(chosen), out=str(out), prompt=prompt, **wanted
        )
        return Path(generate.run(job)["pictures"][0]).read_bytes()

    on = {"captions.weighted": True}
    prompt = "a (red:3) star"
    assert len({drawn(prompt), drawn(prompt, **on), drawn("a red star"), drawn("a red star", **on)}) == 3
