"""Which build of PyTorch fits this machine: NVIDIA (by driver), AMD, a Mac, or none of these."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

INDEX = "https://download.pytorch.org/whl/"

# NVIDIA's minimum Linux drivers for a CUDA toolkit's major version; newest build first. Which there are of a release is
# at github.com/pytorch/pytorch/blob/main/RELEASE.md.
_NEWER_DRIVER = 580
_CUDA_BY_DRIVER: tuple[tuple[int, tuple[str, ...]], ...] = (
    (_NEWER_DRIVER, ("cu130", "cu129", "cu126")),
    (525, ("cu129", "cu126")),
)
# From Turing (2018) up to Hopper a card is in every build; older ones are in the last alone, newer ones not in that.
_IN_ALL_BUILDS, _NOT_IN_OLDEST, _WITH_OLDER_CARDS = (7, 5), (10, 0), "cu126"
_MACOS = 14  # that its wheels ask for
_ROCM = ("rocm7.2", "rocm7.1", "rocm7.0", "rocm6.4")


@dataclass(frozen=True)
class Build:
    """A build of PyTorch to try: what it is for, and the pip arguments that find it."""

    name: str
    arguments: tuple[str, ...] = ()


DEFAULT = Build("the default package index's build")


@dataclass(frozen=True)
class Machine:
    system: str  # Linux, Windows, Darwin
    nvidia_driver: str = ""
    has_amd: bool = False
    processor: str = ""  # that this Python was built for
    release: str = ""  # of macOS
    capability: tuple[int, int] | None = None  # of the NVIDIA card; None where that is not known


def look() -> Machine:
    """What is in this machine, without importing anything."""
    system, driver, has_amd = platform.system(), _nvidia_driver(), Path("/dev/kfd").exists()
    return Machine(system, driver, has_amd, platform.machine(), platform.mac_ver()[0], _nvidia_capability())


def missing(machine: Machine) -> str:
    """Why there is no build for this machine at all, and what to do; empty if there is one."""
    if machine.system != "Darwin":
        return ""
    if machine.processor == "x86_64":
        return (
            "This Python was built for Intel CPUs, for which PyTorch no longer comes on a Mac: with Apple "
            "silicon start this with a Python for arm64; an Intel Mac cannot train."
        )
    if machine.release and int(machine.release.split(".")[0]) < _MACOS:
        return f"This is macOS {machine.release}, but PyTorch needs macOS {_MACOS} or newer; update it."
    return ""


def builds(machine: Machine) -> list[Build]:
    """The builds to try, the best first; the next is tried where an index has none."""
    if machine.system == "Darwin":
        return [DEFAULT]
    if machine.nvidia_driver:
        major = int(machine.nvidia_driver.split(".")[0])
        for least, cudas in _CUDA_BY_DRIVER:
            if major >= least and machine.capability and machine.capability < _IN_ALL_BUILDS:
                return [_from_index(_WITH_OLDER_CARDS)]
            if major >= least and machine.capability and machine.capability >= _NOT_IN_OLDEST:
                cudas = tuple(cuda for cuda in cudas if cuda != _WITH_OLDER_CARDS)
            if major >= least:
                # On Linux the default index has the CUDA 13 build; on Windows it has none for NVIDIA.
                default = [DEFAULT] if machine.system == "Linux" and "cu130" in cudas else []
                return [_from_index(cuda) for cuda in cudas] + default
    if is_amd(machine):
        return [_from_index(rocm) for rocm in _ROCM]
    return [_from_index("cpu"), DEFAULT]


def names(machine: Machine) -> list[str]:
    return [build.name for build in builds(machine)]


def note(machine: Machine) -> str:
    """One sentence for the person about the choice; empty where it is plain."""
    if machine.nvidia_driver and int(machine.nvidia_driver.split(".")[0]) < _CUDA_BY_DRIVER[-1][0]:
        return (
            f"The NVIDIA driver {machine.nvidia_driver} is too old for this PyTorch (it needs "
            f"{_CUDA_BY_DRIVER[-1][0]} or newer): training uses the CPU. Update it and set up again."
        )
    if machine.has_amd and machine.system == "Windows":
        return "AMD cards are used on Linux only: training uses the CPU."
    return ""


def hint(machine: Machine) -> str:
    """What may help where there is none of the builds; empty where nothing is known to."""
    if machine.nvidia_driver and int(machine.nvidia_driver.split(".")[0]) < _NEWER_DRIVER:
        return f"Update the NVIDIA driver to {_NEWER_DRIVER} or newer, for which there are others."
    return ""


def is_amd(machine: Machine) -> bool:
    """Whether its builds are those for an AMD GPU."""
    return machine.has_amd and machine.system == "Linux" and not machine.nvidia_driver


def _from_index(name: str) -> Build:
    return Build(name, ("--index-url", INDEX + name))


def _nvidia_driver() -> str:
    first = next(iter(_query_nvidia_smi("driver_version")), "")
    return first if first.split(".")[0].isdecimal() else ""


def _nvidia_capability() -> tuple[int, int] | None:
    """Of the first card; but where no build has both that and a newer one, of the newest, as the driver's tool counts
    cards by their place in the machine, and PyTorch the quickest first."""
    found = [one.partition(".")[::2] for one in _query_nvidia_smi("compute_cap")]
    cards = [(int(major), int(minor)) for major, minor in found if major.isdecimal() and minor.isdecimal()]
    if cards and cards[0] < _IN_ALL_BUILDS and max(cards) >= _NOT_IN_OLDEST:
        return max(cards)
    return cards[0] if cards else None


def _query_nvidia_smi(what: str) -> list[str]:
    """What the driver's own tool says of each card; empty where it is not there, or does not know it."""
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in out.strip().splitlines()]
