"""What was learned, exported as something else: at a weight, into another checkpoint, as a LoRA of another rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth.core.errors import UserError
from dreambooth.core.models import checkpoint
from dreambooth.core.project import Project
from dreambooth.engine.checkpoints import lora, lora_extraction
from dreambooth.engine.checkpoints.source import open_source
from tests.engine import tiny
from tests.engine.runs import LORA, exported, saved, tiny_project, train

WITH_TEXT = {"tuning.text_encoder_ratio": 1}
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
MOST = 512  # more than any of a very small model's sides

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Path]:
    """A model that was trained as a whole, and its result."""
    made = tiny_project(tmp_path_factory.mktemp("full"))
    return made, saved(train(made, **WITH_TEXT))[-1]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Path]:
    """A LoKr."""
    made = tiny_project(tmp_path_factory.mktemp("small"))
    return made, saved(train(made, **LORA, **{"lora.kind": "lokr"}))[-1]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the family."""
    path = tiny.write_original(tmp_path_factory.mktemp("other") / "other.safetensors", "sd1")
    generator = torch.Generator().manual_seed(9)
    tensors = {name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator) for name, tensor in floats(path)}
    save_file({**load_file(path), **tensors}, path, {"modelspec.resolution": "64x64"})
    return path


@pytest.fixture(scope="module")
def inpainting(other: Path) -> Path:
    """The same with the five channels that a model for inpainting takes besides."""
    path, tensors = other.with_name("inpainting.safetensors"), load_file(other)
    more = torch.randn(tensors[FIRST].shape[0], 5, 3, 3, generator=torch.Generator().manual_seed(1))
    save_file({**tensors, FIRST: torch.cat([tensors[FIRST], more], 1)}, path)
    return path


def floats(path: Path) -> list[tuple[str, torch.Tensor]]:
    return [(name, tensor) for name, tensor in load_file(path).items() if tensor.is_floating_point()]


def change(before: Path, after: Path) -> Tensors:
    """What differs between two files, by the names there."""
    first, second = load_file(before), load_file(after)
    return {name: second[name] - first[name] for name in first if not torch.equal(first[name], second[name])}


def close(one: Tensors, two: Tensors, within: float = 1e-5) -> bool:
    return one.keys() == two.keys() and all(torch.allclose(one[name], two[name], atol=within) for name in one)


def test_half_of_what_a_whole_model_learned(full: tuple[Project, Path], tmp_path: Path) -> None:
    made, result = full
    to = tmp_path / "half.safetensors"
    exported(made, to=str(to), merge=0.5)
    whole = change(made.source, result)
    assert close(change(made.source, to), {name: tensor / 2 for name, tensor in whole.items()})
    assert not any(name.startswith("first_stage_model.") for name in whole)


@pytest.mark.parametrize("weight", [None, 0.5])
def test_put_into_another_checkpoint(
    full: tuple[Project, Path], other: Path, tmp_path: Path, weight: float | None
) -> None:
    made, result = full
    to = tmp_path / "other.ckpt" if weight else tmp_path / "other.safetensors"
    exported(made, to=str(to), onto=str(other), merge=weight)
    written = open_source(to)
    learned = open_source(result)
    base, target = open_source(made.source), open_source(other)
    assert written.tensors.keys() == target.tensors.keys()
    for name in target.tensors:
        if target.read(name).is_floating_point():
            wanted = target.read(name) + (weight or 1.0) * (learned.read(name) - base.read(name))
            assert torch.allclose(written.read(name), wanted, atol=1e-6), name
        if name.startswith("vae/"):
            assert torch.equal(written.read(name), target.read(name)), "what was not trained is the other's to the bit"


def test_put_into_a_model_for_inpainting(full: tuple[Project, Path], inpainting: Path, tmp_path: Path) -> None:
    made, result = full
    to = tmp_path / "inpainting.safetensors"
    exported(made, to=str(to), onto=str(inpainting))
    before, after, learned = load_file(inpainting)[FIRST], load_file(to)[FIRST], change(made.source, result)[FIRST]
    assert torch.allclose(after[:, :4] - before[:, :4], learned, atol=1e-6)
    assert torch.equal(after[:, 4:], before[:, 4:])
    about = checkpoint.describe(checkpoint.read_header(to))
    assert about.inpainting and about.metadata["dreambooth.base"] == "inpainting.safetensors"
    exported(made, to=str(tmp_path / "folder"), onto=str(inpainting))
    folder = load_file(tmp_path / "folder" / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(folder["conv_in.weight"], after)


def test_what_another_checkpoint_is_stays_what_it_is(tmp_path: Path) -> None:
    """What was learned with a model that predicts the noise, in one that predicts v and is of another size."""
    made, to = tiny_project(tmp_path, "sd2"), tmp_path / "onto.safetensors"
    result = saved(train(made))[-1]
    other = tiny.write_original(tmp_path / "other.safetensors", "sd2-v", **{"modelspec.resolution": "128x128"})
    exported(made, weights=str(result), to=str(to), onto=str(other))
    about = checkpoint.describe(checkpoint.read_header(to))
    assert (about.prediction_type, about.known_by, about.resolution) == ("v_prediction", "metadata", 128)
    assert about.metadata["modelspec.architecture"] == "stable-diffusion-v2-768-v"
    assert json.loads(to.with_suffix(".yaml").read_text())["model"]["params"]["parameterization"] == "v"


def test_a_lora_is_put_into_another_checkpoint(small: tuple[Project, Path], other: Path, tmp_path: Path) -> None:
    made, _ = small
    into_own, into_other = tmp_path / "own.safetensors", tmp_path / "other.safetensors"
    exported(made, to=str(into_own), merge=0.7)
    exported(made, to=str(into_other), onto=str(other), merge=0.7)
    assert close(change(made.source, into_own), change(other, into_other))


def test_a_whole_model_as_a_lora(full: tuple[Project, Path], tmp_path: Path) -> None:
    """With ranks as large as the layers nothing is lost but what no LoRA holds."""
    made, result = full
    to = tmp_path / "extracted.safetensors"
    said = exported(made, to=str(to), rank=MOST)
    base, learned = open_source(made.source), open_source(result)
    layers = lora.read(to, base.tensors, "sd1")
    held = whole = 0.0
    for name in base.tensors:
        difference = learned.read(name).float() - base.read(name).float()
        whole += difference.square().sum().item()
        if name in layers:
            assert torch.allclose(layers[name].change(base.read(name)), difference, atol=1e-5), name
            held += difference.square().sum().item()
    assert said["held"] == pytest.approx(held / whole, abs=1e-4)
    assert 0.5 < said["held"] < 1
    assert {name.split("/")[0] for name in layers} == {"unet", "text_encoder"}
    about = checkpoint.read_header(to).metadata
    assert (about["ss_network_dim"], about["ss_network_module"]) == (str(MOST), "networks.lora")
    assert json.loads(about["dreambooth.settings"])["general.method"] == "full"


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_its_layers_are_those_of_a_trained_lora(kind: str, tmp_path: Path) -> None:
    made, to = tiny_project(tmp_path, kind), tmp_path / "extracted.safetensors"
    result = saved(train(made, **WITH_TEXT))[-1]
    exported(made, weights=str(result), to=str(to), rank=2)
    trained = saved(train(made, **LORA, **WITH_TEXT, **{"lora.layers": "convolutions"}))[-1]
    found, known = load_file(to), load_file(trained)
    assert found.keys() <= known.keys()
    assert all(found[name].shape == known[name].shape for name in found)
    missing = known.keys() - found.keys()  # SDXL's first text encoder has a last block that nobody reads
    assert not any(known[name].any() for name in missing if name.endswith("lora_up.weight"))
    assert bool(missing) == (kind == "sdxl")


def test_a_higher_rank_holds_more(full: tuple[Project, Path], tmp_path: Path) -> None:
    made, result = full
    ranks = {rank: {"to": str(tmp_path / f"{rank}.safetensors"), "rank": rank} for rank in (1, 4, 16)}
    held = [exported(made, weights=str(result), **wanted)["held"] for wanted in ranks.values()]
    assert held == sorted(held) and held[0] < held[1] < held[2]
    sizes = [(tmp_path / f"{rank}.safetensors").stat().st_size for rank in (1, 4, 16)]
    assert sizes == sorted(sizes)


def test_a_lora_of_another_kind_as_a_plain_one(small: tuple[Project, Path], tmp_path: Path) -> None:
    made, result = small
    to = tmp_path / "plain.safetensors"
    assert exported(made, to=str(to), rank=MOST)["held"] == pytest.approx(1, abs=1e-4)
    base = open_source(made.source)
    ours, theirs = lora.read(to, base.tensors, "sd1"), lora.read(result, base.tensors, "sd1")
    changes = {name: layer.change(base.read(name)) for name, layer in theirs.items()}
    assert ours.keys() == {name for name, change in changes.items() if change.any()}
    for name, layer in ours.items():
        assert layer.kind == "lora"
        assert torch.allclose(layer.change(base.read(name)), changes[name], atol=1e-5)


def test_half_precision_is_kept_or_asked_for(full: tuple[Project, Path], tmp_path: Path) -> None:
    made, _ = full
    exported(made, to=str(tmp_path / "whole.safetensors"), rank=2)
    exported(made, to=str(tmp_path / "half.safetensors"), rank=2, half=True)
    kinds = [
        checkpoint.describe(checkpoint.read_header(tmp_path / f"{name}.safetensors")) for name in ("whole", "half")
    ]
    assert [about.precision for about in kinds] == ["fp32", "fp16"]


def test_what_was_only_rounded_did_not_change(tmp_path: Path) -> None:
    """A half checkpoint of a model in full precision whose text encoder was left alone."""
    made = tiny_project(tmp_path)
    train(made, **{"saving.half_model": True, "tuning.unet_layers": "attention"})
    to = tmp_path / "extracted.safetensors"
    exported(made, to=str(to), rank=MOST)
    assert all("_attn" in name for name in load_file(to))


def test_the_search_holds_what_the_exact_decomposition_holds() -> None:
    """With sizes that fall slowly, which is where it could miss some."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(300, 300, generator=generator))[0] for _ in range(2))
    matrix = left * torch.arange(1, 301).float().rsqrt() @ right
    changed = matrix.view(300, 100, 3, 1)
    for rank in (4, 32, 128):
        down, up = lora_extraction.factors(changed, rank)
        assert down.shape == (rank, 100, 3, 1) and up.shape == (300, rank, 1, 1)
        held = 1 - (matrix - up.flatten(1) @ down.flatten(1)).square().sum() / matrix.square().sum()
        exact = torch.linalg.svdvals(matrix).square()
        assert held >= (exact[:rank].sum() / exact.sum()) * 0.999
    again = lora_extraction.factors(changed, 4)
    assert all(torch.equal(one, two) for one, two in zip(again, lora_extraction.factors(changed, 4)))


def test_what_cannot_be_exported_so_is_said_in_a_sentence(
    full: tuple[Project, Path], small: tuple[Project, Path], other: Path, tmp_path: Path
) -> None:
    made, result = full
    to = str(tmp_path / "x.safetensors")
    large = tiny.write_original(tmp_path / "large.safetensors", "sdxl")
    wider = load_file(other)
    wider[FIRST] = torch.zeros(64, 4, 3, 3)
    save_file(wider, tmp_path / "wider.safetensors")

    def refused(**wanted: Any) -> str:
        with pytest.raises(UserError) as error:
            exported(made, **{"to": to, "weights": str(result), **wanted})
        assert len(error.value.problems) == 1 and not Path(to).exists()
        return str(error.value)

    assert "rank: it must be a whole number from 1 to 512 (it is 0)" in refused(rank=0)
    assert "rank: it must be a whole number" in refused(rank=4.5)
    assert "merge: it must be from -4 to 4" in refused(merge=True)
    assert "rank: it makes a LoRA, and merge a checkpoint" in refused(rank=4, merge=1)
    assert "rank: it makes a LoRA, and onto a checkpoint" in refused(rank=4, onto=str(other))
    assert "to: a LoRA is one .safetensors file" in refused(rank=4, to=str(tmp_path / "x.ckpt"))
    assert "base: the model before training has learned nothing" in refused(weights="", base=True, rank=4)
    assert "there is no such file" in refused(onto=str(tmp_path / "none.safetensors"))
    assert "is no checkpoint" in refused(onto=str(small[1]))
    assert "is SDXL; 'sd1' is Stable Diffusion 1" in refused(onto=str(large))
    assert "unet/conv_in.weight is of another size" in refused(onto=str(tmp_path / "wider.safetensors"))


def test_nothing_learned_is_no_lora(tmp_path: Path) -> None:
    made = tiny_project(tmp_path)
    with pytest.raises(UserError, match="nothing was learned that a LoRA could hold"):
        exported(made, weights=str(made.source), rank=4, to=str(tmp_path / "x.safetensors"))


def test_a_source_that_is_gone_is_told(tmp_path: Path) -> None:
    made = tiny_project(tmp_path)
    result = saved(train(made))[-1]
    made.source.unlink()
    with pytest.raises(UserError, match=made.source.name):
        exported(made, weights=str(result), rank=4, to=str(tmp_path / "x.safetensors"))


def test_what_an_export_left_that_was_killed_is_swept_away_by_the_next(
    small: tuple[Project, Path], tmp_path: Path
) -> None:
    old, new = tmp_path / ".exporting-old", tmp_path / ".exporting-new"
    for place in (old, new):
        place.mkdir()
    os.utime(old, (0, 0))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    at_work = f".{os.getppid()}.x.partial.safetensors"
    for name in (at_work, f".{ended.pid}.x.partial.safetensors", ".mine.partial.safetensors"):
        (tmp_path / name).touch()
    assert Path(exported(small[0], base=True, to=str(tmp_path / "folder"))["path"]).is_dir()
    left = {".exporting-new", "folder", at_work, ".mine.partial.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == left
