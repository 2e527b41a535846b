"""Reading and writing model files, of every family and spelling."""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.models import checkpoint, webui_config
from dreambooth.core.models.load_overrides import Origin
from dreambooth.core.settings import parse
from dreambooth.engine import export, families
from dreambooth.engine.checkpoints import original, webui_yaml
from dreambooth.engine.checkpoints.entry import Entry
from dreambooth.engine.checkpoints.source import Files, open_source
from dreambooth.engine.checkpoints.write import free_name, write, write_tensors
from dreambooth.engine.drawing.sampling import Sampling, draw, make_scheduler
from dreambooth.engine.families.model import Model
from dreambooth.engine.families.pipelines import pipeline
from dreambooth.engine.run import outputs
from tests.engine import tiny
from tests.engine.runs import folders, tiny_project


@pytest.fixture(scope="module")
def model() -> Model:
    return families.load_file(MINIATURE)


def unet_entries(model: Model, dtype: torch.dtype = torch.float16) -> dict[str, Entry]:
    return {name: Entry.of(tensor, dtype) for name, tensor in original.own_tensors({"unet": model.unet}).items()}


def test_there_and_back_changes_no_bit(tmp_path: Path, model: Model) -> None:
    out = tmp_path / "out.safetensors"
    entries = original.trained_entries(open_source(MINIATURE), unet_entries(model), "sd1", half=True)
    write(out, entries, {"a": "b"})
    before, after = load_file(MINIATURE), load_file(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    assert checkpoint.read_header(out).metadata == {"a": "b"}


def test_full_precision_keeps_what_half_would_round(tmp_path: Path, model: Model) -> None:
    changed = {"unet/conv_out.bias": Entry.of(torch.full((4,), 1 / 3))}
    entries = original.trained_entries(open_source(MINIATURE), changed, "sd1", half=False)
    write(tmp_path / "x.safetensors", entries, {})
    written = load_file(tmp_path / "x.safetensors")
    assert torch.equal(written["model.diffusion_model.out.2.bias"], torch.full((4,), 1 / 3))
    assert written["model.diffusion_model.out.2.weight"].dtype == torch.float16


def test_half_precision_leaves_the_noise_schedule_in_a_file_as_it_is(tmp_path: Path) -> None:
    """A1111 loads the schedule that original SD files hold and takes its sigmas from it: rounded, the least of them is
    7 % off."""
    alphas = make_scheduler("ddim", families.load_file(MINIATURE)).alphas_cumprod
    save_file({**load_file(MINIATURE), "alphas_cumprod": alphas}, tmp_path / "in.safetensors")
    source = open_source(tmp_path / "in.safetensors")
    write(tmp_path / "out.safetensors", original.trained_entries(source, {}, "sd1", half=True), {})
    written = load_file(tmp_path / "out.safetensors")["alphas_cumprod"]
    assert written.dtype == torch.float32 and torch.equal(written, alphas)


def test_a_merge_that_lost_a_level_of_the_text_encoders_names_is_read_and_written(tmp_path: Path, model: Model) -> None:
    lost = {name.replace("transformer.text_model.", "transformer."): t for name, t in load_file(MINIATURE).items()}
    lost["model_ema.decay"] = torch.ones(1)
    lost["stray.key"] = torch.ones(2, dtype=torch.int64)
    save_file(lost, tmp_path / "merge.safetensors")
    source = open_source(tmp_path / "merge.safetensors")
    assert source.about.stray == ["stray.key"]
    ours, theirs = model.text_encoders["text_encoder"], families.load(source).text_encoders["text_encoder"]
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    changed = {name: Entry.of(t + 1, torch.float16) for name, t in original.own_tensors({"text_encoder": ours}).items()}
    write(tmp_path / "out.safetensors", original.trained_entries(source, changed, "sd1", half=True), {})
    written = load_file(tmp_path / "out.safetensors")
    assert written.keys() == lost.keys() - {"model_ema.decay"}
    bias = "cond_stage_model.transformer.final_layer_norm.bias"
    assert torch.equal(written[bias], (lost[bias].float() + 1).half())
    assert torch.equal(written["stray.key"], lost["stray.key"])


def test_each_tensor_lies_at_a_multiple_of_its_numbers_size(tmp_path: Path) -> None:
    """As in files that safetensors itself writes: a reader may look at the file's bytes in place, without a copy."""
    tensors = {"a.alpha": torch.ones((), dtype=torch.float16), "a.dora_scale": torch.ones(1, 3), "b": torch.ones(2)}
    write_tensors(tmp_path / "x.safetensors", tensors, {})
    written = checkpoint.read_header(tmp_path / "x.safetensors").tensors
    assert {name: tensor.start % tensors[name].itemsize for name, tensor in written.items()} == dict.fromkeys(
        tensors, 0
    )


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_pickle_holds_each_number_of_8_bits_in_16(tmp_path: Path, dtype: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    write_tensors(tmp_path / "x.ckpt", {"x": every}, {})
    read = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]["x"]
    assert read.dtype == torch.float16 and torch.equal(read.float().nan_to_num(7e7), every.float().nan_to_num(7e7))
    header = checkpoint.read_header(tmp_path / "x.ckpt")
    assert header.tensors["x"].dtype == "F16"


def test_a_checkpoint_in_8_bits_is_written_as_a_pickle(tmp_path: Path) -> None:
    source = open_source(tiny.write_original(tmp_path / "x.safetensors", "sd1", torch.float8_e4m3fn))
    for suffix in (".ckpt", ".safetensors"):
        write(tmp_path / f"y{suffix}", original.trained_entries(source, {}, "sd1", half=True), {})
    one, other = (open_source(tmp_path / f"y{suffix}") for suffix in (".ckpt", ".safetensors"))
    assert (one.about.precision, other.about.precision) == ("fp16", "fp8")
    assert all(torch.equal(one.read(name).float(), other.read(name).float()) for name in source.tensors)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_a_pickle_of_8_bits_or_of_matrices_that_lie_turned_is_read(tmp_path: Path, kind: str, *, zipped: bool) -> None:
    """Numbers of 8 bits have no kind of storage of their own; any program that has turned a matrix may save it so."""
    plain = load_file(tiny.write_original(tmp_path / "x.safetensors", kind, torch.float16))
    for name, weight in plain.items():
        if weight.dim() > 1 and name.startswith("model.diffusion_model."):
            plain[name] = weight.to(torch.float8_e4m3fn)
    save_file(plain, tmp_path / "x.safetensors")
    turned = {name: one.t().contiguous().t() if one.dim() == 2 else one for name, one in plain.items()}
    torch.save({"state_dict": turned}, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped)
    one, other = open_source(tmp_path / "x.safetensors"), open_source(tmp_path / "x.ckpt")
    assert one.tensors.keys() == other.tensors.keys()
    assert all(one.tensors[name].dtype == other.tensors[name].dtype for name in one.tensors)
    assert all(torch.equal(one.read(name).float(), other.read(name).float()) for name in one.tensors)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_training_scripts_leave_beside_the_weights_is_passed_over(tmp_path: Path, *, zipped: bool) -> None:
    """A module's own state with its version, callbacks by their types, a schedule's counter, sets, large numbers."""
    module = torch.nn.Linear(2, 3)
    beside = {"callbacks": {torch.nn.Linear: {"best": 2**40}}, "steps": Counter({1000: 1}), "seen": {1, (2, 3)}}
    for name, content in (("whole", {"state_dict": module.state_dict(), **beside}), ("plain", module.state_dict())):
        torch.save(content, tmp_path / f"{name}.ckpt", _use_new_zipfile_serialization=zipped)
        header = checkpoint.read_header(tmp_path / f"{name}.ckpt")
        assert {key: one.shape for key, one in header.tensors.items()} == {"weight": (3, 2), "bias": (3,)}


def test_weights_behind_a_tensor_that_is_passed_over_are_found_at_their_place(tmp_path: Path) -> None:
    """Before PyTorch 1.6 storages lie one after another, so that each one's size says where the next begins."""
    several = [torch.arange(10.0 * n, 10.0 * n + 4) for n in range(3)]
    beside, *rest = sorted(several, key=lambda one: str(one.untyped_storage()._cdata))  # the order in the file
    weights = {str(number): values for number, values in enumerate(rest)}
    beside.note = "an attribute makes it none of the plain tensors"
    torch.save({"state_dict": weights, "beside": beside}, tmp_path / "x.ckpt", _use_new_zipfile_serialization=False)
    header = checkpoint.read_header(tmp_path / "x.ckpt")
    files = Files()
    assert all(torch.equal(files.read(header.tensors[name]), values) for name, values in weights.items())


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_another_file_is_never_overwritten(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(b"precious")
    with pytest.raises(UserError, match="not overwritten"):
        write_tensors(path, {"x": torch.ones(1)}, {})
    assert path.read_bytes() == b"precious"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert free_name(tmp_path, "mine", suffix).name == f"mine-2{suffix}"


def test_a_yaml_that_was_there_stays_and_is_never_another_models(tmp_path: Path, model: Model) -> None:
    """A WebUI reads it for every checkpoint of its name."""
    source = open_source(tiny.write_original(tmp_path / "x.safetensors", "sd2"))
    like: Any = SimpleNamespace(family="sdxl", prediction_type="v_prediction", unet=None)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(webui_yaml, "layout", lambda model: {"x": 1})
        target, theirs = tmp_path / "y.safetensors", tmp_path / "y.yaml"
        for content, meant in (("theirs", like), ('{"x": 1}', model)):  # of a v-prediction, and of an SD 1 without one
            theirs.write_text(content)
            with pytest.raises(UserError, match=r"y\.yaml: .* name another file"):
                webui_yaml.beside(target, source, meant)
            assert theirs.read_text() == content
        theirs.write_bytes(json.dumps({"x": 1}, indent=1).encode())
        with pytest.raises(ZeroDivisionError), webui_yaml.beside(target, source, like):
            raise ZeroDivisionError
        assert theirs.exists(), "it was there before"
        theirs.unlink()
        with pytest.raises(ZeroDivisionError), webui_yaml.beside(target, source, like):
            assert theirs.exists()
            raise ZeroDivisionError
        assert not theirs.exists()


EPSILON, V = (f"model:\n  params:\n    parameterization: {said}\n" for said in ("eps", "v"))
NEITHER = "model:\n  params:\n    scale_factor: 0.18215\n"


@pytest.mark.parametrize(
    ("kind", "beside", "chosen", "taken"),
    [
        ("sd2", EPSILON, "epsilon", True),
        ("sd2", EPSILON, "v_prediction", False),
        ("sd2", NEITHER, "epsilon", True),  # its code base means epsilon then
        ("sd2-v", V, "auto", True),
        ("sd2-v", EPSILON, "auto", False),  # its metadata says v
        ("sdxl-v", NEITHER, "auto", False),
        ("sd1", V, "epsilon", False),
    ],
)
def test_the_sources_yaml_is_taken_over_only_where_it_is_true(
    tmp_path: Path, kind: str, beside: str, chosen: Any, taken: bool
) -> None:
    path = tiny.write_original(tmp_path / "x.safetensors", kind)
    path.with_suffix(".yaml").write_text(beside)
    source = open_source(path, Origin(prediction_type=chosen))
    model, to = families.skeleton(source), tmp_path / "y.safetensors"
    with webui_yaml.beside(to, source, model):
        written = to.with_suffix(".yaml")
        assert written.exists() == (kind != "sd1"), "a WebUI knows such a model without one"
        assert (written.exists() and written.read_text() == beside) == taken
        if written.exists():
            assert webui_config.prediction(written.read_text(), model.family) == model.prediction_type


def test_the_yaml_of_another_model_is_not_a_folders_of_a_name_with_a_dot(tmp_path: Path) -> None:
    source = open_source(tiny.write_folder(tmp_path / "m-v1.5", "sd1"))
    (tmp_path / "m-v1.yaml").write_text("model:\n  params:\n    parameterization: eps\n")
    with webui_yaml.beside(tmp_path / "y.safetensors", source, families.skeleton(source)):
        assert not (tmp_path / "y.yaml").exists()


@pytest.mark.parametrize("suffix", [".yaml", ".ckpt", ".safetensors"])
def test_a_result_takes_no_name_that_another_checkpoint_has(tmp_path: Path, suffix: str) -> None:
    made, chosen = tiny_project(tmp_path), parse({"general.method": "full"})
    taken = folders(made).checkpoints / f"sd1_5{suffix}"
    taken.parent.mkdir()
    taken.touch()
    assert outputs.place(folders(made), made, chosen, 5).name == "sd1_5-2.safetensors"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pwrite")
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_what_the_disk_changed_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """A byte of a tensor that is another one when it is read back, or a shape."""
    tensors = {"x": torch.rand(3_000_000), "y": torch.rand(4, 5), "z": torch.zeros(())}
    write_tensors(tmp_path / f"good{suffix}", tensors, {})
    content, at_rest = (tmp_path / f"good{suffix}").read_bytes(), os.fsync
    places = [content.index(one.numpy().tobytes()) + one.nbytes - 1 for one in (tensors["x"], tensors["y"])]
    for place in (*places, content.index(b"[4,5]") + 1 if suffix == ".safetensors" else places[0]):

        def spoil(descriptor: int, place: int = place) -> None:
            at_rest(descriptor)
            os.pwrite(descriptor, bytes([content[place] ^ 1]), place)

        with monkeypatch.context() as patched:
            patched.setattr("dreambooth.engine.checkpoints.write.os.fsync", spoil)
            with pytest.raises(UserError, match=rf"bad\{suffix}: what was written is not what is read back"):
                write_tensors(tmp_path / f"bad{suffix}", tensors, {})
        assert [path.name for path in tmp_path.iterdir()] == [f"good{suffix}"]


def test_a_copy_that_differs_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tensors(tmp_path / "x.safetensors", {"x": torch.ones(5)}, {})
    monkeypatch.setattr("shutil.copyfile", lambda source, target: Path(target).write_bytes(b"x" * 84))
    with pytest.raises(UserError, match="what was copied is not what is read back"):
        export._copy_lora(tmp_path / "x.safetensors", tmp_path / "y.safetensors")
    assert not (tmp_path / "y.safetensors").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dreambooth.engine.checkpoints.write.os.fsync", fail)
    with pytest.raises(UserError, match="No space left"):
        write_tensors(tmp_path / f"x{suffix}", {"x": torch.ones(1)}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_name_as_long_as_the_disk_takes_is_written(tmp_path: Path, suffix: str) -> None:
    longest = tmp_path / f"{'字' * 81}{suffix}"
    write_tensors(longest, {"x": torch.ones(1)}, {})
    assert [path.name for path in tmp_path.iterdir()] == [longest.name]
    too_long = tmp_path / f"{'字' * 90}{suffix}"
    with pytest.raises(UserError, match=f"^{too_long}: the file cannot be written "):
        write_tensors(too_long, {"x": torch.ones(1)}, {})


def test_a_source_that_vanishes_while_it_is_copied_is_the_one_that_is_named(tmp_path: Path) -> None:
    source = open_source(tiny.write_original(tmp_path / "x.safetensors", "sd1"))
    (tmp_path / "x.safetensors").unlink()
    with pytest.raises(UserError, match=f"^{tmp_path}/x.safetensors: the file cannot be read .* put it back"):
        write(tmp_path / "y.safetensors", original.trained_entries(source, {}, "sd1", half=False), {})
    assert not list(tmp_path.iterdir())


def test_where_a_file_is_in_place_of_the_folder_the_one_that_was_meant_is_named(tmp_path: Path) -> None:
    (tmp_path / "star").touch()
    with pytest.raises(UserError, match=f"^{tmp_path}/star/x.safetensors: the file cannot be written "):
        write_tensors(tmp_path / "star" / "x.safetensors", {"x": torch.ones(1)}, {})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("model.diffusion_model.out.2.bias"), "conv_out.bias are missing"),
        (lambda t: t.update({"model.diffusion_model.out.2.bias": torch.ones(5).half()}), "instead of"),
        (lambda t: t["model.diffusion_model.out.2.bias"].fill_(float("nan")), "not finite"),
    ],
)
def test_damaged_weights_are_named(tmp_path: Path, change: object, said: str) -> None:
    tensors = {name: t.clone() for name, t in load_file(MINIATURE).items()}
    change(tensors)  # type: ignore[operator]
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=said):
        families.load_file(tmp_path / "x.safetensors")


def test_diffusers_loads_the_miniature_and_draws_the_same(tmp_path: Path, model: Model) -> None:
    """The file, through diffusers' own single-file loader, given its configuration folder."""
    ours = pipeline(model)
    ours.save_pretrained(tmp_path / "folder")
    for part in ("unet", "vae", "text_encoder"):  # only the configuration is to come from the folder
        for weights in (tmp_path / "folder" / part).glob("*.safetensors"):
            weights.unlink()
    theirs = type(ours).from_single_file(
        str(MINIATURE), config=str(tmp_path / "folder"), local_files_only=True, safety_checker=None
    )
    theirs.scheduler = make_scheduler("ddim", model)
    theirs.set_progress_bar_config(disable=True)
    prompt = "a photo of a red heart on a white background"
    drawn = theirs(
        prompt,
        num_inference_steps=10,
        guidance_scale=5.0,
        width=64,
        height=64,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    own = draw(model, [prompt], [3], Sampling(64, 64, 10, 5.0, scheduler="ddim"))[0]
    assert np.abs(np.asarray(drawn, int) - np.asarray(own, int)).max() <= 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how a file is mapped")
def test_memory_is_set_aside_for_a_file_once_at_most(tmp_path: Path) -> None:
    """Windows does so for all of a file that is mapped to be written to, even where the changes are only ours."""
    path = tmp_path / "model.safetensors"
    shutil.copyfile(MINIATURE, path)
    source = open_source(path)
    name = next(iter(source.tensors))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copied = source.copy(name, torch.float64)
    assert copied.equal(source.read(name).double())
    rights = [line.split()[1] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    assert sum("w" in one for one in rights) == 1
