"""The trainers that we are measured against, each in a checkout that a person names: diffusers' own DreamBooth scripts,
and kohya's sd-scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from dreambooth.core.errors import UserError
from dreambooth.engine.bench import peer_diffusers, peer_sd_scripts
from dreambooth.engine.bench.cases import Case
from dreambooth.engine.bench.peer_diffusers import Diffusers
from dreambooth.engine.bench.peer_sd_scripts import SdScripts


class Peer(Protocol):
    """A trainer in its checkout."""

    name: ClassVar[str]
    title: ClassVar[str]  # as a sentence has it
    trainable: ClassVar[str]  # which models, as a sentence has it
    layers: ClassVar[str]  # that its LoRA is put into, as `lora.layers` has it
    reads_folder: ClassVar[bool]  # it wants the model as a Diffusers folder, and not as a single file

    def trains(self, case: Case, *, large: bool) -> bool:
        """Whether it can do this case, of a model of full size or of a miniature."""

    def told(self, case: Case, model: Path, pictures: Path, prompt: str, work: Path) -> dict[str, Any]:
        """What peer_run is told, for the same work as ours: these pictures, cut at the middle, for so many steps.

        It may write into the folder `work`, which is the script's own.
        """


def given(asked: dict[str, Any]) -> list[Peer]:
    """Those that job.json names. Raises UserError for a folder that holds none, or a Python that cannot run one."""
    python = asked.get("peer_python", "")
    found = [_of(Path(folder), python) for folder in asked.get("peer") or ()]
    names = [one.name for one in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--peer: {twice[0]} is there twice; name each trainer once.")
    if python and SdScripts.name not in names:
        raise UserError("--peer-python: it is sd-scripts' Python; name a checkout of sd-scripts with --peer.")
    return found


def _of(folder: Path, python: str) -> Peer:
    if not folder.is_dir():
        raise UserError(f"--peer: {folder} is no folder; name a checkout of diffusers or of sd-scripts.")
    found = Diffusers.at(folder) or SdScripts.at(folder, python)
    if not found:
        theirs, kohyas = (" and ".join(one.FILES) for one in (peer_diffusers, peer_sd_scripts))
        raise UserError(
            f"--peer: {folder} holds neither {theirs} nor {kohyas}; name a checkout of diffusers or of sd-scripts."
        )
    return found


def at_work(case: Case, peers: Sequence[Peer], *, large: bool) -> list[tuple[Case, Peer | None]]:
    """Who does a case, in turn: we (None), and each peer that can. Where their LoRAs are put into other layers, we do
    it once with each."""
    able = [(same_work(case, peer), peer) for peer in peers if peer.trains(case, large=large)]
    kinds = list(dict.fromkeys(kind for kind, _ in able)) or [case]
    return [(kind, who) for kind in kinds for who in (None, *(peer for own, peer in able if own == kind))]


def same_work(case: Case, peer: Peer) -> Case:
    """The case as this peer does it."""
    return replace(case, layers=peer.layers) if case.method == "lora" else case


def check(peer: Peer, cases: Iterable[Case], *, large: bool) -> None:
    """Raises UserError for a peer that can do none of the cases."""
    if not any(peer.trains(case, large=large) for case in cases):
        raise UserError(f"--peer: {peer.title} trains {peer.trainable} alone; measure that, or leave it out.")
