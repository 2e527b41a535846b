"""What may end its process is tried in another one. A stand-in for bitsandbytes ends it for real, as that does."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from dreambooth.core import engine_capabilities
from dreambooth.core.errors import UserError
from dreambooth.core.settings import parse
from dreambooth.engine import hardware, selfcheck
from dreambooth.engine.families import unet_weights
from dreambooth.engine.process import probe
from dreambooth.engine.training import optimizers

CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)
SAID = "Error no kernel image is available for execution on the device at line 90 in file ops.cu"
STAND_IN = f"""
import os, sys, torch
class optimizer: sync_gpu = None
class Lion8bit(torch.optim.SGD):
    def __init__(self, groups, betas): super().__init__(groups, lr=0.01)
class AdamW8bit(torch.optim.SGD):
    def __init__(self, groups, betas, eps): super().__init__(groups, lr=0.01)
    def step(self, closure=None):
        print({SAID!r}, file=sys.stderr, flush=True)
        os._exit(1)
"""


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was asked yet, and the card is not the one of this environment's set-up."""
    monkeypatch.setattr(probe, "_known", {})
    monkeypatch.setattr(hardware, "name", lambda device: "another card")


@pytest.fixture
def stand_in(unknown: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that other processes take for bitsandbytes."""
    (tmp_path / "bitsandbytes").mkdir()
    (tmp_path / "bitsandbytes" / "__init__.py").write_text("from . import optim")
    (tmp_path / "bitsandbytes" / "optim.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.skipif(os.name == "nt", reason="its own pipe would hang")
def test_what_is_tried_does_not_wait_for_what_this_process_is_told(
    unknown: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A further process of a run listens to a pipe; on Windows another process that has it hangs at its start."""
    (tmp_path / "bitsandbytes.py").write_text("import sys\nsys.stdin.read()\nraise ImportError('it was read')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(probe, "SECONDS", 40)
    (reader, writer), own = os.pipe(), os.dup(0)
    try:
        os.dup2(reader, 0)
        probe.ask([("optimizer.name", "lion_8bit")], CPU)
    finally:
        os.dup2(own, 0)
        for one in (reader, writer, own):
            os.close(one)
    assert "it was read" in optimizers.fault("lion_8bit", CPU)


def test_a_library_that_ends_its_process_is_a_fault_with_its_last_words(stand_in: None) -> None:
    """Those after it are tried all the same. Other processes have no card here: they are told of the CPU."""
    probe.ask([("optimizer.name", "adamw_8bit"), ("optimizer.name", "lion_8bit"), ("memory.unet_weights", "nf4")], CPU)
    assert optimizers.fault("adamw_8bit", CPU) == f"it ends the process: {SAID}"
    assert optimizers.fault("lion_8bit", CPU) == ""
    assert "functional" in unet_weights.fault("nf4", CPU)
    with pytest.raises(UserError, match=r"^optimizer\.name: adamw_8bit does not work here \(it ends .*; choose adamw"):
        optimizers.check(parse({"optimizer.name": "adamw_8bit", "general.method": "full"}), CPU)


@pytest.mark.parametrize("name", [*optimizers.BY_BITSANDBYTES, "nf4"])
def test_on_a_card_it_is_asked_of_another_process_once(
    name: str, unknown: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answers(choices: list[probe.Choice], device: torch.device) -> list[str]:
        asked.extend(choice for _, choice in choices)
        return ["it is tired"] * len(choices)

    monkeypatch.setattr(probe, "_answers", answers)
    for _ in range(2):
        found = unet_weights.fault(name, CARD) if name == "nf4" else optimizers.fault(name, CARD)
        assert found == "it is tired"
    assert asked == [name]


def test_every_choice_of_bitsandbytes_is_known_as_such(unknown: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    broken = [name for name in optimizers.RECIPES if optimizers.try_here(name, CPU)]
    assert tuple(broken) == optimizers.BY_BITSANDBYTES


def test_where_the_set_up_saw_it_work_it_is_tried_here(
    unknown: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp = tmp_path / "stamp.json"
    report = {"device_name": "a card", engine_capabilities.FAULTS: {"optimizer.name": {"lion_8bit": "it is tired"}}}
    stamp.write_text(json.dumps({"report": report}))
    monkeypatch.setattr(hardware, "name", lambda device: "a card")
    monkeypatch.setattr(probe, "ENGINE", Path(sys.prefix))
    proven = engine_capabilities.is_proven
    monkeypatch.setattr(engine_capabilities, "is_proven", lambda *about: proven(*about, stamp))
    monkeypatch.setattr(probe, "_answers", lambda choices, device: ["there"] * len(choices))
    said = [probe.fault(("optimizer.name", name), CARD, lambda: "here") for name in ("adamw_8bit", "lion_8bit")]
    assert said == ["here", "there"]
    monkeypatch.setattr(hardware, "name", lambda device: "another card")
    assert probe.fault(("optimizer.name", "adamw_8bit"), CARD, lambda: "here") == "there"


def test_where_another_process_gets_no_card_it_is_tried_here(unknown: None) -> None:
    """As on a card that takes one process at a time; here there is none at all."""
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    assert probe.fault(("optimizer.name", "lion_8bit"), CARD, lambda: "here") == "here"


def test_the_set_up_asks_for_all_at_once(unknown: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def answers(choices: list[probe.Choice], device: torch.device) -> list[str]:
        asked.append(len(choices))
        return ["it is tired"] * len(choices)

    monkeypatch.setattr(probe, "_answers", answers)
    monkeypatch.setattr(selfcheck.attention, "fault", lambda *_: "")
    for name in ("bf16_fault", "fp16_fault"):
        monkeypatch.setattr(selfcheck.precision, name, lambda *_: "")
    monkeypatch.setattr(selfcheck.optimizers, "try_here", lambda name, device: "")
    faults = selfcheck._faults(CARD)
    assert asked == [len(optimizers.BY_BITSANDBYTES) + 1]
    assert faults["optimizer.name"] == dict.fromkeys(optimizers.BY_BITSANDBYTES, "it is tired")
    assert faults["memory.unet_weights"] == {"nf4": "it is tired"}
