"""Every family: read from every layout, drawn as diffusers draws it, written back without changing a bit."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth.core.errors import UserError
from dreambooth.core.models import checkpoint
from dreambooth.core.models.load_overrides import Origin
from dreambooth.engine import families, hardware
from dreambooth.engine.checkpoints import original
from dreambooth.engine.checkpoints.diffusers_folder import write_folder
from dreambooth.engine.checkpoints.source import open_source
from dreambooth.engine.checkpoints.write import write
from dreambooth.engine.drawing.sampling import Sampling, draw, make_scheduler
from dreambooth.engine.families.pipelines import pipeline
from tests.engine import tiny

PROMPT = "a photo of a (red) star, on a blue background"


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def file(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_original(tmp_path_factory.mktemp("file") / f"{kind}.safetensors", kind)


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_folder(tmp_path_factory.mktemp("folder") / kind, kind)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems make room on the disk as they go")
def test_a_model_that_the_memory_cannot_hold_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 2**20
    monkeypatch.setattr(hardware, "available_bytes", lambda: free)
    monkeypatch.setattr(hardware, "swap_bytes", lambda: 0)
    with pytest.raises(UserError, match=r"to load it takes about \d+ MB of .* memory, of which 1 MB are free; close"):
        families.load_file(file, dtype=torch.float16)
    families.load_file(file)  # of its own precision it stays the file's pages
    monkeypatch.setattr(hardware, "swap_bytes", lambda: 2**40)
    families.load_file(file, dtype=torch.float16)


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere the system tells it otherwise, or takes pages when it wants"
)
def test_what_is_copied_in_another_precision_holds_no_page_of_the_file(file: Path) -> None:
    def resident() -> int:
        maps = Path("/proc/self/smaps").read_text(encoding="utf-8").split(str(file))[1:]
        return sum(int(one.split("Rss:")[1].split()[0]) for one in maps)

    source = open_source(file)
    copies = {name: source.copy(name, torch.float64) for name in source.tensors}
    assert resident() == 0
    assert all(torch.equal(source.read(name).double(), copied) for name, copied in copies.items())
    assert resident() > 0, "those that are read share them"


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Everything in a Diffusers folder, without the level of names that transformers' versions disagree on."""
    return {
        f"{path.parent.name}/{name.removeprefix('text_model.')}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def drawn_by(pipe: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    image = pipe(
        PROMPT,
        num_inference_steps=4,
        guidance_scale=4.0,
        width=64,
        height=64,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    return np.asarray(image, dtype=int)


def test_what_it_is_is_seen_in_file_and_folder(kind: str, file: Path, folder: Path) -> None:
    for path in (file, folder):
        about = checkpoint.describe(checkpoint.read_header(path))
        assert (about.kind, about.family, about.resolution) == ("checkpoint", tiny.family_of(kind), 64)
        assert about.prediction_type == ("v_prediction" if kind.endswith("-v") else "epsilon")
        assert about.zero_terminal_snr == (kind == "sdxl-v")
        assert about.reason == ""


@pytest.mark.parametrize("layout", ["file", "folder"])
def test_it_draws_what_diffusers_draws(kind: str, layout: str, request: pytest.FixtureRequest) -> None:
    model = families.load_file(request.getfixturevalue(layout))
    ours = draw(model, [PROMPT], [5], Sampling(64, 64, 4, 4.0, scheduler="ddim"))[0]
    theirs = tiny.pipeline(kind)
    theirs.scheduler = make_scheduler("ddim", model)
    assert np.abs(drawn_by(theirs) - np.asarray(ours, dtype=int)).max() <= 1
    assert np.asarray(ours).std() > 1


def test_diffusers_single_file_loader_reads_our_file(kind: str, file: Path, folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.mkdir()
    for path in folder.rglob("*.json"):
        (config / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        (config / path.relative_to(folder)).write_bytes(path.read_bytes())
    pipe = tiny.pipeline(kind)
    theirs = pipe.unet.from_single_file(str(file), config=str(config), subfolder="unet", local_files_only=True)
    assert same(dict(pipe.unet.state_dict()), dict(theirs.state_dict()))
    theirs = pipe.vae.from_single_file(str(file), config=str(config), subfolder="vae", local_files_only=True)
    assert same(dict(pipe.vae.state_dict()), dict(theirs.state_dict()))


@pytest.mark.parametrize(("dtype", "suffix"), [(torch.float32, ".safetensors"), (torch.float16, ".ckpt")])
def test_diffusers_to_original_to_diffusers_changes_no_bit(
    kind: str, dtype: torch.dtype, suffix: str, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    tiny.pipeline(kind).to(dtype).save_pretrained(first)
    source = open_source(first)
    write(tmp_path / f"middle{suffix}", original.trained_entries(source, {}, source.about.family, half=False), {})
    known = Origin(
        family=source.about.family,
        prediction_type=source.about.prediction_type,
        zero_terminal_snr="on" if source.about.zero_terminal_snr else "off",
        resolution=64,
    )
    middle = open_source(tmp_path / f"middle{suffix}", known)
    model = families.skeleton(middle)
    write_folder(tmp_path / "second", pipeline(model), original.own_entries(middle, {}, half=False))
    assert same(tensors_of(first), tensors_of(tmp_path / "second"))
    configs = [json.loads((tmp_path / name / "unet" / "config.json").read_text()) for name in ("first", "second")]
    shared = {"cross_attention_dim", "attention_head_dim", "block_out_channels", "use_linear_projection", "sample_size"}
    assert {key: configs[0][key] for key in shared} == {key: configs[1][key] for key in shared}


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_original_to_ours_to_original_changes_no_bit(file: Path, suffix: str, tmp_path: Path) -> None:
    source = open_source(file)
    write(tmp_path / f"x{suffix}", original.trained_entries(source, {}, source.about.family, half=False), {})
    before = load_file(file)
    again = tmp_path / f"x{suffix}"
    after = load_file(again) if suffix == ".safetensors" else torch.load(again, weights_only=True)["state_dict"]
    assert list(before.keys() ^ after.keys()) == []
    assert same(before, after)


def with_tokens(path: Path, kind: str, count: int) -> Path:
    """A Diffusers folder whose text encoders know so many tokens."""
    pipe = tiny.pipeline(kind)
    for part in ("text_encoder", "text_encoder_2"):
        if encoder := getattr(pipe, part, None):
            encoder.resize_token_embeddings(count)
    pipe.save_pretrained(path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_tokens_that_were_added_change_nothing(kind: str, folder: Path, suffix: str, tmp_path: Path) -> None:
    """The vocabulary ends where CLIP's does: a prompt's pooled text is read at CLIP's own end mark, and a WebUI loads
    what is written."""
    added = with_tokens(tmp_path / "added", kind, 49410)
    source = open_source(added)
    write(tmp_path / f"x{suffix}", original.trained_entries(source, {}, source.about.family, half=False), {})
    own = [name for name in open_source(folder).tensors if name.endswith("token_embedding.weight")]
    read = checkpoint.read_header(tmp_path / f"x{suffix}").tensors
    rows = [tensor.shape[0] for name, tensor in read.items() if name.endswith("token_embedding.weight")]
    assert rows == [49408] * len(own)
    plain = families.load_file(folder)
    for path in (added, tmp_path / f"x{suffix}"):
        model = families.load_file(path, Origin(prediction_type=cast(Any, plain.prediction_type), resolution=64))
        for one in (model, plain):
            one.configure_prompts(75, 1)
        with torch.no_grad():
            texts = [one.encode_text(["a photo of a dog", "a red house"]) for one in (model, plain)]
        assert torch.equal(texts[0].hidden, texts[1].hidden)
        if texts[1].pooled is not None:
            assert torch.allclose(cast(torch.Tensor, texts[0].pooled), texts[1].pooled, atol=1e-5)
            assert not torch.allclose(texts[1].pooled[0], texts[1].pooled[1], atol=0.1)


def test_a_vocabulary_that_is_not_clips_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="knows 49000 tokens of CLIP's 49408"):
        families.load_file(with_tokens(tmp_path / "few", kind, 49000))


@pytest.mark.parametrize("told_by", ["scheduler", "chosen", "marks"])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_sdxl_is_written_with_the_marks_of_what_it_predicts(suffix: str, told_by: str, tmp_path: Path) -> None:
    """By which alone some WebUIs know it; a folder has none, nor a file of which a person says it."""
    known = Origin(prediction_type="v_prediction", zero_terminal_snr="on") if told_by == "chosen" else Origin()
    if told_by == "scheduler":
        path = tiny.write_folder(tmp_path / "folder", "sdxl-v")
    else:
        path = tiny.write_original(tmp_path / "x.safetensors", "sdxl" if told_by == "chosen" else "sdxl-v")
    write(tmp_path / f"y{suffix}", original.trained_entries(open_source(path, known), {}, "sdxl", half=True), {})
    header = checkpoint.read_header(tmp_path / f"y{suffix}")
    assert all(header.tensors[mark].values == 0 for mark in ("v_pred", "ztsnr"))
    about = checkpoint.describe(header)
    assert (about.prediction_type, about.known_by, about.zero_terminal_snr) == ("v_prediction", "markers", True)
    if suffix == ".ckpt":
        assert torch.load(tmp_path / "y.ckpt", weights_only=True)["state_dict"]["v_pred"].shape == (0,)


def test_marks_that_a_person_denies_are_not_written(tmp_path: Path) -> None:
    said = Origin(prediction_type="epsilon", zero_terminal_snr="off")
    source = open_source(tiny.write_original(tmp_path / "x.safetensors", "sdxl-v"), said)
    assert not {"v_pred", "ztsnr"} & original.trained_entries(source, {}, "sdxl", half=True).keys()
    half_way = Origin(zero_terminal_snr="off")
    source = open_source(tmp_path / "x.safetensors", half_way)
    assert {"v_pred", "ztsnr"} & original.trained_entries(source, {}, "sdxl", half=True).keys() == {"v_pred"}


def test_torch_maps_our_pickles_into_memory(file: Path, tmp_path: Path) -> None:
    source = open_source(file)
    write(tmp_path / "x.ckpt", original.trained_entries(source, {}, source.about.family, half=True), {})
    mapped = torch.load(tmp_path / "x.ckpt", weights_only=True, mmap=True)["state_dict"]
    assert all(torch.equal(tensor.half(), mapped[name]) for name, tensor in load_file(file).items())
    assert all(tensor.data_ptr() % 64 == 0 for tensor in mapped.values() if tensor.numel())


def test_pickles_of_torch_are_read_as_torch_reads_them(file: Path, tmp_path: Path) -> None:
    tensors = load_file(file)
    tensors["model.diffusion_model.out.2.weight"] = tensors["model.diffusion_model.out.2.weight"].to(
        memory_format=torch.channels_last
    )
    for name, legacy in (("zip", False), ("legacy", True)):
        path = tmp_path / f"{name}.ckpt"
        torch.save(
            {"state_dict": tensors, "global_step": 7, "optimizer_states": [{"lr": 1.0}]},
            path,
            _use_new_zipfile_serialization=not legacy,
        )
        plain, pickled = open_source(file), open_source(path)
        assert plain.tensors.keys() == pickled.tensors.keys()
        assert all(torch.equal(plain.read(name), pickled.read(name)) for name in plain.tensors)


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float16, "fp16"), (torch.bfloat16, "bf16")])
def test_every_precision_is_read(
    kind: str, folder: Path, file: Path, dtype: torch.dtype, precision: str, tmp_path: Path
) -> None:
    tiny.pipeline(kind).to(dtype).save_pretrained(tmp_path / "half", variant="fp16")
    tiny.write_original(tmp_path / "half.safetensors", kind, dtype)
    for half, full in ((tmp_path / "half", folder), (tmp_path / "half.safetensors", file)):
        one, other = open_source(half), open_source(full)
        assert one.about.precision == precision
        assert one.tensors.keys() == other.tensors.keys()
        assert all(torch.equal(one.read(name), other.read(name).to(dtype)) for name in other.tensors)


def test_folders_in_several_files_and_in_pickles_are_read(kind: str, folder: Path, tmp_path: Path) -> None:
    whole = open_source(folder)
    for name, options in (
        ("sharded", {"max_shard_size": "200KB"}),
        ("pickled", {"safe_serialization": False}),
        ("sharded pickles", {"safe_serialization": False, "max_shard_size": "200KB"}),
    ):
        tiny.write_folder(tmp_path / name, kind, **options)
        other = open_source(tmp_path / name)
        assert other.tensors.keys() == whole.tensors.keys()
        assert all(torch.equal(other.read(key), whole.read(key)) for key in whole.tensors)
    assert list((tmp_path / "sharded" / "unet").glob("*.safetensors.index.json"))
    assert list((tmp_path / "sharded pickles" / "unet").glob("*.bin.index.json"))


def test_the_averaged_weights_are_taken_where_asked(file: Path, tmp_path: Path) -> None:
    tensors = load_file(file)
    unet = {name: t for name, t in tensors.items() if name.startswith(checkpoint.UNET)}
    averaged = {"model_ema." + n.removeprefix("model.").replace(".", ""): t + 1 for n, t in unet.items()}
    save_file({**tensors, **averaged, "model_ema.decay": torch.ones(())}, tmp_path / "x.safetensors")
    normal, ema = (
        open_source(tmp_path / "x.safetensors"),
        open_source(tmp_path / "x.safetensors", Origin(weights="ema")),
    )
    assert normal.about.has_ema
    assert torch.equal(ema.read("unet/conv_in.weight"), normal.read("unet/conv_in.weight") + 1)
    assert torch.equal(ema.read("vae/decoder.conv_in.weight"), normal.read("vae/decoder.conv_in.weight"))
    incomplete = {name: t for name, t in averaged.items() if "input_blocks00weight" not in name}
    save_file({**tensors, **incomplete}, tmp_path / "y.safetensors")
    with pytest.raises(UserError, match=r"no EMA weight for .*input_blocks\.0\.0\.weight"):
        open_source(tmp_path / "y.safetensors", Origin(weights="ema"))


@pytest.mark.parametrize("spelling", ["whole file", "own file", "diffusers file", "part of a folder"])
def test_another_files_vae_takes_the_place_of_the_models(
    kind: str, file: Path, folder: Path, spelling: str, tmp_path: Path
) -> None:
    changed = {n: t + 1 if n.startswith(checkpoint.VAE) else t for n, t in load_file(file).items()}
    vae = tmp_path / "vae.safetensors"
    if spelling == "whole file":
        save_file(changed, vae)
    elif spelling == "own file":
        own = {n.removeprefix(checkpoint.VAE): t for n, t in changed.items() if n.startswith(checkpoint.VAE)}
        save_file({**own, "loss.logvar": torch.zeros(1)}, vae)
    else:
        other = tiny.pipeline(kind).vae
        with torch.no_grad():
            for parameter in other.parameters():
                parameter += 1
        other.save_pretrained(tmp_path / "vae")
        vae = tmp_path / "vae"
        if spelling == "diffusers file":
            vae = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    pruned = {n: t for n, t in load_file(file).items() if not n.startswith(checkpoint.VAE)}
    save_file(pruned, tmp_path / "pruned.safetensors", {"modelspec.resolution": "64x64"})
    assert "--vae" in checkpoint.describe(checkpoint.read_header(tmp_path / "pruned.safetensors")).reason
    source = open_source(tmp_path / "pruned.safetensors", Origin(vae=str(vae)))
    assert source.about.reason == ""
    before = open_source(file)
    assert all(torch.equal(source.read(n), before.read(n) + 1) for n in source.tensors if n.startswith("vae/"))
    out = tmp_path / "out.safetensors"
    write(out, original.trained_entries(source, {}, source.about.family, half=False), {})
    assert same(load_file(out), changed)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_miniature_computes_on_one_thread_of_a_cpu_and_a_full_size_model_on_all(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = families.load_file(file)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    model.to(torch.device("cpu"))
    assert torch.get_num_threads() == 2, "what the person has set is kept"
    monkeypatch.delenv("OMP_NUM_THREADS")
    hardware.choose_threads(860_000_000)
    assert torch.get_num_threads() == 2
    model.to(torch.device("cpu"))
    assert torch.get_num_threads() == 1
