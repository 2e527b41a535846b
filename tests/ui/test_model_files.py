"""create, inspect and export from the command line: every kind of file in, every kind of file out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth.core import project
from dreambooth.core.errors import UserError
from dreambooth.core.models import checkpoint
from dreambooth.core.project import Folders
from dreambooth.engine.checkpoints.source import open_source
from tests.conftest import Run
from tests.engine import tiny
from tests.engine.runs import exported

KEY = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"


def test_inspect_says_what_a_file_is_and_how_that_is_known(tmp_path: Path, dreambooth: Run) -> None:
    path = tiny.write_original(tmp_path / "x.safetensors", "sdxl-v")
    said = dreambooth("inspect", path).answer
    assert (said["family"], said["prediction_type"], said["known_by"]) == ("sdxl", "v_prediction", "markers")
    assert said["zero_terminal_snr"] is True
    assert said["stray"] == ["ztsnr", "v_pred"] or set(said["stray"]) == {"v_pred", "ztsnr"}
    folder = dreambooth("inspect", tiny.write_folder(tmp_path / "folder", "sd2-v")).answer
    assert (folder["layout"], folder["family"], folder["known_by"]) == ("diffusers", "sd2", "scheduler")


def test_what_a_person_says_of_a_file_is_kept(tmp_path: Path, dreambooth: Run) -> None:
    tensors = load_file(tiny.write_original(tmp_path / "sd2.safetensors", "sd2"))
    vae = {name: tensor for name, tensor in tensors.items() if name.startswith("first_stage_model.")}
    save_file(vae, tmp_path / "vae.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if name not in vae}, tmp_path / "pruned.safetensors")
    data = ["--data", tmp_path / "models"]
    refused = dreambooth("create", "it", "--source", tmp_path / "pruned.safetensors", *data)
    assert refused.code == 2 and "it has no VAE; name one with --vae FILE" in refused.errors
    flags = ["--vae", tmp_path / "vae.safetensors", "--prediction-type", "v_prediction", "--resolution", 64]
    made = dreambooth("create", "it", "--source", tmp_path / "pruned.safetensors", *flags, *data)
    assert made.code == 0, made.errors
    about = made.answer["about"]
    assert (about["prediction_type"], about["known_by"], about["resolution"]) == ("v_prediction", "chosen", 64)
    out = tmp_path / "whole.safetensors"
    assert dreambooth("export", "it", "--base", "--to", out, *data).code == 0
    written = load_file(out)
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)
    assert '"parameterization": "v"' in out.with_suffix(".yaml").read_text()


def test_an_sdxl_that_predicts_v_is_known_from_what_is_exported_of_it(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path / "folder", "sdxl-v")
    made = project.create(Folders(tmp_path / "models"), "it", folder)
    file = Path(exported(made, base=True, to=str(tmp_path / "y.safetensors"))["path"])
    about = checkpoint.describe(checkpoint.read_header(file))
    assert (about.prediction_type, about.zero_terminal_snr, about.reason) == ("v_prediction", True, "")


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_checkpoint_becomes_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    source, folders = tiny.write_original(tmp_path / "x.safetensors", kind), Folders(tmp_path / "models")
    made = project.create(folders, "it", source)

    def write(name: str, *, half: bool = False) -> Path:
        return Path(exported(made, base=True, to=str(tmp_path / name), half=half)["path"])

    one = open_source(source)
    for name in ("out.ckpt", "folder"):
        other = open_source(write(name))
        assert one.tensors.keys() <= other.tensors.keys()
        assert all(torch.equal(one.read(key), other.read(key)) for key in one.tensors)
    assert not (tmp_path / "out.yaml").exists()
    capitals = write("capitals.SAFETENSORS")
    assert capitals.is_file() and checkpoint.describe(checkpoint.read_header(capitals)).family == kind
    half = write("half.safetensors", half=True)
    assert checkpoint.describe(checkpoint.read_header(half)).precision == "fp16"
    with pytest.raises(UserError, match="exists already"):
        write("folder")
    with pytest.raises(UserError, match=r"name a \.safetensors or \.ckpt file"):
        write("x.zip")
    for wrong, meant in (("x.safetensor", "x.safetensors"), ("x.cpkt", "x.ckpt")):
        with pytest.raises(UserError, match=f"is no ending of a model file; did you mean {meant}"):
            write(wrong)


@pytest.mark.thorough
def test_another_trainers_lora_is_merged_and_drawn_with(tmp_path: Path, dreambooth: Run) -> None:
    source, data = tiny.write_original(tmp_path / "x.safetensors", "sd1"), ["--data", tmp_path / "models"]
    assert dreambooth("create", "it", "--source", source, *data).code == 0
    tensors = load_file(source)
    name = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"
    out, into = tensors[name].shape
    torch.manual_seed(0)
    down, up = torch.randn(2, into), torch.randn(out, 2)
    lora = tmp_path / "theirs.safetensors"
    save_file({f"{KEY}.lora_down.weight": down, f"{KEY}.lora_up.weight": up, f"{KEY}.alpha": torch.tensor(1.0)}, lora)
    merged = tmp_path / "merged.safetensors"
    said = dreambooth("export", "it", "--weights", lora, "--merge", 0.5, "--to", merged, *data)
    assert said.code == 0, said.errors
    written = load_file(merged)
    assert torch.allclose(written[name], tensors[name] + 0.5 * (1 / 2) * up @ down, atol=1e-6)
    assert [key for key in tensors if not torch.equal(tensors[key], written[key])] == [name]
    drawn = {}
    for weights in ([], ["--weights", lora, "--lora-weight", 2]):
        said = dreambooth("generate", "it", "--prompt", "a star", "--steps", 2, *weights, *data)
        drawn["with" if weights else "base"] = Path(said.answer["pictures"][0]).read_bytes()
        assert ("it has no result yet; this draws with the model before training" in said.errors) == (not weights)
    assert drawn["base"] != drawn["with"]
    lines = ["--weights", lora, "--base", "--lora-weights", 0, 2, "--steps", 2]
    sheet = dreambooth("sheet", "it", "--prompt", "a star", *lines, *data).answer
    cells = {Path(path).stem: Path(path).read_bytes() for path in sheet["pictures"]}
    assert cells["00-00"] == cells["01-00"] == drawn["base"] and cells["01-01"] == drawn["with"]
    assert Path(sheet["sheet"]).is_file()
    both = dreambooth("generate", "it", "--prompt", "a star", "--base", "--weights", lora, *data)
    assert both.code == 2 and "exclude each other" in both.errors
    far = dreambooth("export", "it", "--weights", lora, "--merge", 9, "--to", tmp_path / "y.safetensors", *data)
    assert far.code == 2 and "--merge: it must be from -4 to 4" in far.errors
