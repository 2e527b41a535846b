from __future__ import annotations

import pytest

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
    ],
)
def test_each_machine_gets_its_build(machine: Machine, first: str, falls_back: bool) -> None:
    found = builds(machine)
    assert found[0].name == first
    assert found[0].arguments[-1].endswith(f"/whl/{first}")
    assert (DEFAULT in found) == falls_back


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
