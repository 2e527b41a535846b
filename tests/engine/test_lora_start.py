"""The check tells of a LoRA file that cannot be gone on from, in the engine's own words and before torch is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dreambooth.core import settings
from dreambooth.core.errors import UserError
from dreambooth.core.project import Project
from dreambooth.engine import plan
from dreambooth.engine.checkpoints.source import open_model
from dreambooth.engine.run import start_file
from tests.conftest import ROOT
from tests.engine.runs import new_run, saved, tiny_project, train

SITE = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
PAIR = {"lora_down.weight": (2, 32), "lora_up.weight": (32, 2)}
LOHA = {"hada_w1_a": (32, 2), "hada_w1_b": (2, 32), "hada_w2_a": (32, 2), "hada_w2_b": (2, 32)}


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("start"))


def told(star: Project, file: Path, **changes: Any) -> list[str]:
    """What the check says, after it was seen to be what the engine says."""
    wanted = {"general.method": "lora", "lora.start_file": str(file), **changes}
    job = new_run(star, **wanted)
    said = list(plan.report(job)["problems"])
    try:
        start_file.read(settings.parse(job.settings()), open_model(star))
    except UserError as error:
        assert said == error.problems
    else:
        assert said == []
    return said


@pytest.mark.parametrize(
    ("tensors", "changes", "reason"),
    [
        ({f"{SITE}.{name}": shape for name, shape in PAIR.items()}, {}, ""),
        ({f"{SITE}.{name}": shape for name, shape in PAIR.items()}, {"tuning.train_unet": False}, "teaches the UNet"),
        ({f"{SITE}.{name}": shape for name, shape in LOHA.items()}, {"lora.dropout": 0.1}, "no input to drop"),
        ({f"{SITE}.oft_blocks": (4, 8, 8), f"{SITE}.alpha": ()}, {}, "COFT"),
        ({f"lora_unet_mid_block_elsewhere.{name}": shape for name, shape in PAIR.items()}, {}, "has no place in this"),
        ({f"{SITE}.lora_down.weight": (2, 32)}, {}, "is incomplete; the file is damaged"),
        ({f"{SITE}.{name}": shape for name, shape in {**PAIR, "alpha": (2,)}.items()}, {}, "is incomplete"),
        ({"unet.weight": (2, 2)}, {}, "this is not a LoRA file"),
    ],
)
def test_a_file_is_judged_by_its_header(
    star: Project, tensors: dict[str, tuple[int, ...]], changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "start.safetensors"
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, file)
    said = told(star, file, **{"tuning.text_encoder_ratio": 1.0, **changes})
    assert (not said and not reason) or (len(said) == 1 and reason in said[0])


def test_one_that_is_not_there_and_one_of_another_family(star: Project, tmp_path: Path) -> None:
    assert "there is no such file" in told(star, tmp_path / "gone.safetensors")[0]
    assert told(star, star.source) == [f"{star.source}: this is not a LoRA file; name another."], "a whole checkpoint"
    other = tiny_project(tmp_path, "sdxl")
    lora = saved(train(other, **{"general.method": "lora", "general.resolution": 64}))[0]
    assert "has no place in this model; it belongs to another kind" in told(star, lora)[0]
    assert told(other, lora) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.bool])
def test_a_bound_of_zero_in_any_precision_is_none(star: Project, dtype: torch.dtype, tmp_path: Path) -> None:
    for bound in (0, 1):
        file = tmp_path / f"{bound}.safetensors"
        save_file({f"{SITE}.oft_blocks": torch.ones(4, 8, 8), f"{SITE}.alpha": torch.tensor(bound, dtype=dtype)}, file)
        assert len(told(star, file)) == bound


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_bound_that_nothing_reaches_is_none(star: Project, dtype: torch.dtype, tmp_path: Path) -> None:
    for bound, refused in ((1000, False), (float("inf"), False), (992, True), (float("nan"), True), (-1, True)):
        file = tmp_path / f"{bound}.safetensors"
        save_file({f"{SITE}.oft_blocks": torch.ones(4, 8, 8), f"{SITE}.alpha": torch.tensor(bound, dtype=dtype)}, file)
        assert bool(told(star, file)) == refused, bound


def test_the_check_loads_no_torch() -> None:
    code = "import sys; from dreambooth.engine import plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
