"""Full-size models with random weights: what is read and written is exact at the real sizes too.

Left out unless asked for (python -m tests -m large): it takes up to 16 GB of memory, 30 GB of disk and some minutes.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open

from dreambooth.core.install_paths import SUBJECT_PICTURES
from dreambooth.engine.bench.random_model import write_random
from tests.conftest import Run

pytestmark = pytest.mark.large

FAMILIES = {"sd1": 512, "sd2": 768, "sdxl": 1024}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["fp16", "fp32"])
def checkpoint(family: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp(family)
    path = folder / f"{family}.safetensors"
    prediction = {"modelspec.prediction_type": "v"} if family == "sd2" else {}
    write_random(path, family, {"fp16": torch.float16, "fp32": torch.float32}[request.param], **prediction)
    yield path
    path.unlink()


def assert_same(one: Path, other: Path) -> None:
    with safe_open(one, "pt") as a, safe_open(other, "pt") as b:
        assert sorted(a.keys()) == sorted(b.keys())
        for name in a.keys():  # noqa: SIM118  (it is no dictionary)
            left, right = a.get_tensor(name), b.get_tensor(name)
            assert left.dtype == right.dtype and torch.equal(left, right), name


def test_original_to_diffusers_to_original_changes_no_bit(
    checkpoint: Path, family: str, tmp_path: Path, dreambooth: Run
) -> None:
    data = tmp_path / "models"
    said = dreambooth("create", "big", "--source", checkpoint, "--data", data)
    assert said.answer["about"]["resolution"] == FAMILIES[family]
    assert dreambooth("export", "big", "--base", "--to", tmp_path / "folder", "--data", data).code == 0
    known = ["--prediction-type", "v_prediction"] if family == "sd2" else []
    assert dreambooth("create", "two", "--source", tmp_path / "folder", "--data", data, *known).code == 0
    assert dreambooth("export", "two", "--base", "--to", tmp_path / "again.safetensors", "--data", data).code == 0
    assert_same(checkpoint, tmp_path / "again.safetensors")


@pytest.mark.parametrize("checkpoint", ["fp16"], indirect=True)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_one_step_of_each_method(checkpoint: Path, family: str, tmp_path: Path, dreambooth: Run, method: str) -> None:
    if family == "sdxl" and method == "full":
        pytest.skip("takes 45 GB of memory")
    data = tmp_path / "models"
    assert dreambooth("create", "big", "--source", checkpoint, "--data", data).code == 0
    flags = {
        "concepts.0.instance_data_dir": SUBJECT_PICTURES,
        "concepts.0.instance_prompt": "a photo of sks star",
        "general.method": method,
        "general.resolution": 128,
        "intervals.num_train_epochs": 1,
        "batching.train_batch_size": 5,
        "batching.gradient_checkpointing": "on",
        "previews.count": 0,
    }
    said = dreambooth("train", "big", "--data", data, *[f"--{key}={value}" for key, value in flags.items()])
    assert said.code == 0, said.errors
    assert (said.answer["status"], said.answer["step"]) == ("done", 1)
    gc.collect()
    if method == "lora":
        state, alphas = StableDiffusionPipeline.lora_state_dict(said.answer["outputs"][0])
        assert len(state) == 2 * (16 * 12 if family != "sdxl" else 722)
        assert set(alphas.values()) == {16.0}
    else:
        with safe_open(said.answer["outputs"][0], "pt") as after, safe_open(checkpoint, "pt") as before:
            assert sorted(after.keys()) == sorted(before.keys())
