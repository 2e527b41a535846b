from __future__ import annotations

import subprocess
import types
from typing import Any

import pytest

from dreambooth.service import torch_build
from dreambooth.service.torch_build import DEFAULT, Machine, builds, missing, note


@pytest.mark.parametrize(
    ("machine", "first", "falls_back"),
    [
        (Machine("Linux", "580.95.05"), "cu130", True),
        (Machine("Linux", "570.10"), "cu129", False),
        (Machine("Windows", "581.0"), "cu130", False),
        (Machine("Windows", "530.0"), "cu129", False),
        (Machine("Linux", has_amd=True), "rocm7.2", False),
        (Machine("Linux", "580.1", has_amd=True), "cu130", True),
        (Machine("Linux", "470.1"), "cpu", True),
        (Machine("Windows", has_amd=True), "cpu", True),
        (Machine("Linux"), "cpu", True),
        (Machine("Linux", "580.95.05", capability=(7, 5)), "cu130", True),
        (Machine("Linux", "580.95.05", capability=(6, 1)), "cu126", False),
        (Machine("Windows", "560.1", capability=(7, 0)), "cu126", False),
        (Machine("Windows", "572.16", capability=(12, 0)), "cu129", False),
    ],
)
def test_each_machine_gets_its_build(machine: Machine, first: str, falls_back: bool) -> None:
    found = builds(machine)
    assert found[0].name == first
    assert found[0].arguments[-1].endswith(f"/whl/{first}")
    assert (DEFAULT in found) == falls_back


@pytest.mark.parametrize(
    ("says", "driver", "capability"),
    [
        ({"driver_version": "580.95.05", "compute_cap": "6.1"}, "580.95.05", (6, 1)),
        ({"driver_version": "580.95.05", "compute_cap": "12.0\n9.0"}, "580.95.05", (12, 0)),
        ({"driver_version": "580.95.05\n580.95.05", "compute_cap": "6.1\n12.0"}, "580.95.05", (12, 0)),
        ({"driver_version": "580.95.05\n580.95.05", "compute_cap": "6.1\n8.6"}, "580.95.05", (6, 1)),
        ({"driver_version": "470.1"}, "470.1", None),  # a tool that knows no such field
        ({}, "", None),
    ],
)
def test_what_the_drivers_tool_says_of_the_first_card(
    says: dict[str, str], driver: str, capability: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an old one and one of 2025, which no build has both, that is the newer, as to PyTorch."""

    def run(command: list[str], **_: Any) -> Any:
        asked = command[1].removeprefix("--query-gpu=")
        if asked not in says:
            raise subprocess.CalledProcessError(2, command)
        return types.SimpleNamespace(stdout=says[asked] + "\n")

    monkeypatch.setattr(subprocess, "run", run)
    found = torch_build.look()
    assert (found.nvidia_driver, found.capability) == (driver, capability)


def test_the_oldest_build_has_none_of_the_newest_cards() -> None:
    assert [build.name for build in builds(Machine("Linux", "570.1", capability=(12, 0)))] == ["cu129"]
    assert [build.name for build in builds(Machine("Linux", "570.1", capability=(9, 0)))] == ["cu129", "cu126"]
    assert "580" in torch_build.hint(Machine("Linux", "570.1")) and not torch_build.hint(Machine("Linux", "580.1"))


def test_a_mac_takes_the_default() -> None:
    assert builds(Machine("Darwin")) == [DEFAULT]


@pytest.mark.parametrize(
    ("processor", "release", "reason"),
    [
        ("arm64", "14.0", ""),
        ("arm64", "26.1", ""),
        ("arm64", "13.7.1", "macOS 14"),
        ("x86_64", "15.2", "a Python for arm64"),
    ],
)
def test_a_mac_for_which_there_is_no_pytorch_hears_why(processor: str, release: str, reason: str) -> None:
    said = missing(Machine("Darwin", processor=processor, release=release))
    assert reason in said if reason else not said


def test_a_person_hears_why_the_card_is_not_used() -> None:
    assert "470.1 is too old" in note(Machine("Linux", "470.1"))
    assert "Linux only" in note(Machine("Windows", has_amd=True))
    assert note(Machine("Linux", "580.1")) == ""
