"""The trainers that we are measured against: which checkout is whose, which Python runs it, what each is told, and what
is seen of it."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTokenizer

from dreambooth.core.errors import UserError
from dreambooth.core.job_list import create
from dreambooth.engine.bench import cases, drawing, peer_diffusers, peer_sd_scripts, peers, training
from dreambooth.engine.bench.cases import LEAST_STEPS, Case
from dreambooth.engine.bench.measuring import Bench
from dreambooth.engine.prompts.vocabulary import clip_tokenizer
from dreambooth.ui.describe import of_benches
from tests.conftest import ROOT

tomllib = pytest.importorskip("tomllib")  # of Python 3.11

LARGE = Case("sd1", "lora", 2, 256, 8, rank=16)


def checkout(folder: Path, files: tuple[str, ...]) -> str:
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).touch()
    return str(folder)


@pytest.fixture
def both(tmp_path: Path) -> dict[str, Any]:
    """What job.json says of a checkout of each, sd-scripts with this Python."""
    diffusers = checkout(tmp_path / "diffusers" / "examples" / "dreambooth", peer_diffusers.FILES)
    sd_scripts = checkout(tmp_path / "sd-scripts", peer_sd_scripts.FILES)
    there = [str(Path(diffusers).parents[1]), sd_scripts]
    return {"peer": there, "peer_python": sys.executable}


@pytest.fixture(autouse=True)
def _packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests' own environment lacks of sd-scripts' packages is not asked for."""
    monkeypatch.setattr(peer_sd_scripts, "NEEDED", ("torch", "accelerate", "diffusers", "transformers"))


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python without packages."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    return str(folder / peer_sd_scripts.VENV_PYTHON)


def test_checkouts_are_told_apart_by_their_files(both: dict[str, Any]) -> None:
    assert [one.name for one in peers.given(both)] == ["diffusers", "sd-scripts"]
    assert peers.given({}) == []
    scripts = {"peer": [str(Path(both["peer"][0]) / "examples" / "dreambooth")]}
    assert peers.given(scripts)[0].name == "diffusers", "the folder of the scripts themselves"


def test_what_is_no_peer(tmp_path: Path, both: dict[str, Any], bare_python: str) -> None:
    diffusers, sd_scripts = both["peer"]
    (tmp_path / "broken").write_text("no program")
    for asked, said in (
        ({"peer": [str(tmp_path / "nowhere")]}, "nowhere is no folder; name a checkout of diffusers or of sd-scripts."),
        ({"peer": [str(tmp_path)]}, "holds neither train_dreambooth.py and train_dreambooth_lora.py nor train_network"),
        ({"peer": [diffusers, diffusers]}, "--peer: diffusers is there twice"),
        ({"peer": [diffusers], "peer_python": sys.executable}, "--peer-python: it is sd-scripts' Python"),
        ({"peer": [sd_scripts]}, "is not there; name its Python with --peer-python."),
        ({"peer": [sd_scripts], "peer_python": "/nowhere/python"}, "--peer-python: /nowhere/python cannot be started"),
        ({"peer": [sd_scripts], "peer_python": str(tmp_path / "broken")}, "broken cannot be started"),
        (
            {"peer": [sd_scripts], "peer_python": bare_python},
            "has no torch, no accelerate, no diffusers, no transformers",
        ),
    ):
        with pytest.raises(UserError) as caught:
            peers.given(asked)
        assert said in str(caught.value)
        assert str(caught.value).count("\n") == 0


@pytest.mark.skipif(sys.platform == "win32", reason="a shell's script")
def test_a_program_that_is_no_python(tmp_path: Path, both: dict[str, Any]) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho 'I am none.' >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(
        UserError, match=r"is no Python that works \(I am none\.\); name the Python that sd-scripts runs"
    ):
        peers.given({"peer": both["peer"][1:], "peer_python": str(program)})


def test_the_checkouts_own_environment_is_found(both: dict[str, Any]) -> None:
    own = Path(both["peer"][1]) / "venv" / peer_sd_scripts.VENV_PYTHON
    own.parent.mkdir(parents=True)
    own.symlink_to(sys.executable)
    with pytest.raises(UserError, match="has no torch"):  # as the link is not followed: it is another environment
        (own.parents[1] / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")
        peers.given({"peer": both["peer"][1:]})


def test_whoever_can_takes_part_and_we_do_the_same_work_as_each(both: dict[str, Any]) -> None:
    theirs = peers.given(both)

    def turns(case: Case, *, large: bool) -> list[tuple[str, str]]:
        return [(one.layers, who.name if who else "ours") for one, who in peers.at_work(case, theirs, large=large)]

    assert turns(LARGE, large=True) == [
        ("attention", "ours"),
        ("attention", "diffusers"),
        ("transformer", "ours"),
        ("transformer", "sd-scripts"),
    ]
    full, sdxl = Case("sd1", "full", 1, 512, 8), Case("sdxl", "full", 1, 1024, 8)
    assert [who for _, who in turns(full, large=True)] == ["ours", "diffusers", "sd-scripts"]
    assert [who for _, who in turns(sdxl, large=True)] == ["ours", "sd-scripts"]
    assert [who for _, who in turns(full, large=False)] == ["ours", "diffusers"], "it knows no miniature"
    with pytest.raises(UserError, match="--peer: sd-scripts trains SD 1 and SDXL of full size"):
        peers.check(theirs[1], [full], large=False)


@pytest.mark.parametrize(("family", "method"), peer_sd_scripts._SCRIPTS)
def test_sd_scripts_is_told_the_same_work(both: dict[str, Any], tmp_path: Path, family: str, method: str) -> None:
    sd_scripts, pictures = peers.given(both)[1], tmp_path / "a \\ of 'pictures'"
    checkout(pictures, ("1.png", "2.png", "3.png"))
    case = Case(family, method, 2, 256, 8, rank=16)
    told = sd_scripts.told(case, tmp_path / "model.safetensors", pictures, "a photo of sks", tmp_path / "work")
    options = dict(one[2:].partition("=")[::2] for one in told["arguments"])
    data = tomllib.loads(Path(options["dataset_config"]).read_text(encoding="utf-8"))["datasets"][0]
    assert (data["resolution"], data["batch_size"]) == (256, 2)
    subset = {
        "image_dir": str(pictures),
        "class_tokens": "a photo of sks",
        "num_repeats": 6,
    }  # 16 pictures in one epoch
    assert data["subsets"] == [subset]
    assert options["max_train_steps"] == "8"
    assert {"cache_latents", "sdpa"} < set(options)
    assert told["python"] == sys.executable
    assert Path(told["script"]).name == peer_sd_scripts._SCRIPTS[family, method]
    assert ("network_train_unet_only" in options) == (method == "lora")
    assert options.get("network_dim") == options.get("network_alpha") == ("16" if method == "lora" else None)
    assert (options.get("stop_text_encoder_training") == "-1") == (family == "sd1" and method == "full")
    assert ("cache_text_encoder_outputs" in options) == (family == "sdxl")
    folders = list(Path(options["tokenizer_cache_dir"]).iterdir())
    assert len(folders) == 2
    read = CLIPTokenizer.from_pretrained(folders[0])
    assert read("a photo of sks star").input_ids == clip_tokenizer()("a photo of sks star").input_ids


def test_what_cases_can_be_asked_for() -> None:
    some = cases.asked_for(
        {"large": True, "family": "sd1", "method": "lora", "resolution": 256, "steps": 12, "batch": 1}
    )
    assert some == [Case("sd1", "lora", 1, 256, 12)], "two cases that differ in the batch are one now"
    assert cases.asked_for({}) == cases.SMALL
    assert cases.asked_for({"large": True}) == cases.LARGE
    for asked, said in (
        ({"steps": LEAST_STEPS - 1}, "--steps: it must be at least 8"),
        ({"resolution": 100}, "--resolution: it must be a multiple of 64"),
        ({"large": True, "family": "sd2"}, "--family: with --large, sd1 and sdxl are measured"),
    ):
        with pytest.raises(UserError, match=said):
            cases.asked_for(asked)


def test_the_instrument_needs_no_package_of_ours(bare_python: str) -> None:
    """It is imported in the Python of others."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [bare_python, "-c", "import dreambooth.engine.bench.peer_run"]
    subprocess.run(command, check=True, cwd=ROOT, env=variables)


def test_sd_scripts_draws_no_class_pictures(tmp_path: Path, both: dict[str, Any]) -> None:
    job = create(tmp_path / "job", {"kind": "bench-drawing", "out": str(tmp_path / "out"), **both}, "{}")
    with pytest.raises(UserError, match="--peer: sd-scripts draws no class pictures"):
        drawing.measure(job)


UNET = """
from torchvision import transforms  # as sd-scripts does; where there is none, a stand-in
import time, torch
class UNet2DConditionModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen, self.learns = torch.nn.Linear(3, 3).requires_grad_(False), torch.nn.Linear(3, 5, bias=False)
    def forward(self, x):
        time.sleep(0.1)  # longer than a busy machine takes between two steps
        return self.learns(self.frozen(x))
"""
SCRIPT = """
import os, sys
import torch
from accelerate import Accelerator
from library.original_unet import UNet2DConditionModel
options = dict(one[2:].partition("=")[::2] for one in sys.argv[1:])
assert "PYTHONPATH" not in os.environ, "it is that of our packages"
unet, accelerator = UNet2DConditionModel(), Accelerator(cpu=True)
optimizer = torch.optim.SGD([p for p in unet.parameters() if p.requires_grad], 0.0)
unet, optimizer = accelerator.prepare(unet, optimizer)
for step in range(int(options["max_train_steps"])):
    accelerator.backward(0 * unet(torch.ones(1, 3)).mean() + step)
    optimizer.step()
    optimizer.zero_grad()
os.makedirs(options["output_dir"])
"""


TAKEN: dict[str, Any] = {
    **dict.fromkeys(("step_seconds", "first_step_seconds", "step_cpu_seconds", "first_step_cpu_seconds"), 1.0),
    **dict.fromkeys(("mean_step_seconds", "model_seconds", "flops"), 1.0),
    **dict.fromkeys(("peak_bytes", "device_peak_bytes", "trained"), 1234567),
    "losses": [0.5],
    "versions": {},
}


def test_what_is_seen_of_a_peer_and_told(both: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real process of a small script with a UNet of its own; ours is made up."""
    folder = Path(both["peer"][1])
    (folder / "library").mkdir()
    (folder / "library" / "original_unet.py").write_text(UNET)
    (folder / "train_network.py").write_text(SCRIPT)
    taken: list[Case] = []

    def ours(bench: Bench, case: Case) -> dict[str, Any]:
        taken.append(case)
        return TAKEN

    monkeypatch.setattr(Bench, "ours", ours)
    monkeypatch.setattr(Bench, "source", lambda bench, family: tmp_path / "model.safetensors")
    chosen = {"family": "sd1", "method": "lora", "resolution": 256, "steps": 9, "batch": 1, "repeats": 1, "large": True}
    about = {"kind": "bench-training", "out": str(tmp_path / "out"), **chosen, **both, "peer": both["peer"][1:]}
    made = training.measure(create(tmp_path / "job", about, "{}"))
    assert taken == [Case("sd1", "lora", 1, 256, 9, layers="transformer")]
    row = made["rows"][1]
    assert row["who"] == "sd-scripts"
    assert row["trained"] == 15
    assert row["losses"] == [float(step) for step in range(8)]
    assert 0 < row["step_seconds"] < row["first_step_seconds"]
    assert 0 <= row["overhead_seconds"] < row["step_seconds"], "forward and backward are seen"
    assert not (tmp_path / "out").exists()
    said = of_benches.bench({"part": "training", **made})
    assert "lora 4, transformer  1,234,567" in said
    assert "0.000 1.000 2.000 3.000" in said
    assert f"sd-scripts: torch {row['versions']['torch']}" in said
    ratio = made["ratios"][0]
    assert ratio["steps"] == row["step_seconds"] and ratio["start"] == 1 / row["first_step_seconds"]
    assert ratio["memory"] == 1234567 / (row["device_peak_bytes"] or row["peak_bytes"])


def test_who_fails_ends_the_race_for_itself_alone(
    both: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the checkout lacks is found when its process has started."""
    about = {"kind": "bench-training", "out": str(tmp_path / "out"), **both, "large": True, "repeats": 2}
    about |= {"family": "sd1", "method": "lora", "batch": 1, "peer": both["peer"][1:]}
    turns: list[Case] = []
    monkeypatch.setattr(Bench, "ours", lambda bench, case: turns.append(case) or TAKEN)
    monkeypatch.setattr(Bench, "source", lambda bench, family: tmp_path / "model.safetensors")
    made = training.measure(create(tmp_path / "job", about, "{}"))
    assert [row["who"] for row in made["rows"]] == ["ours"] and len(turns) == 2
    assert made["ratios"] == []
    said = "sd-scripts: sd1 lora batch 1 at 512: the measured process failed: ModuleNotFoundError: No module named 'li"
    assert len(made["failed"]) == 1 and made["failed"][0].startswith(said)
    assert f"Failed: {made['failed'][0]}" in of_benches.bench({"part": "training", **made})
    monkeypatch.setattr(Bench, "ours", failing)
    monkeypatch.setattr(Bench, "peer", failing)
    with pytest.raises(UserError) as caught:
        training.measure(create(tmp_path / "job", about, "{}"))
    assert [one.partition(":")[0] for one in caught.value.problems] == ["ours", "sd-scripts"]


def failing(bench: Bench, case: Case, peer: object = None) -> dict[str, Any]:
    raise UserError("It failed.")


def test_a_training_that_nobody_can_join_is_refused(both: dict[str, Any], tmp_path: Path) -> None:
    job = create(tmp_path / "job", {"kind": "bench-training", "out": str(tmp_path / "out"), **both}, "{}")
    with pytest.raises(UserError, match=r"of full size \(--large\) alone; measure that, or leave it out"):
        training.measure(job)
    assert not (tmp_path / "out").exists()
