"""The trainers that we are measured against: diffusers' own DreamBooth scripts, from a checkout that a person names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.core import project
from dreambooth.core.errors import UserError
from dreambooth.core.project import Folders

if TYPE_CHECKING:
    from dreambooth.engine.bench.training import Case

Scripts = dict[str, Path]

_NAMES = {"full": "train_dreambooth.py", "lora": "train_dreambooth_lora.py"}


def scripts(checkout: Path) -> Scripts:
    """The scripts by method. Raises UserError if they are not there."""
    for folder in (checkout / "examples" / "dreambooth", checkout):
        found = {method: folder / name for method, name in _NAMES.items()}
        if all(path.is_file() for path in found.values()):
            return found
    raise UserError(f"--peer: {checkout} holds no {' and '.join(_NAMES.values())}; name a checkout of diffusers.")


def arguments(case: Case, model: Path, pictures: Path, prompt: str, out: Path) -> list[str]:
    """The same work as ours: these pictures, cut at the middle, for so many steps."""
    options = {
        "pretrained_model_name_or_path": model,
        "instance_data_dir": pictures,
        "instance_prompt": prompt,
        "output_dir": out,
        "resolution": case.resolution,
        "train_batch_size": case.batch,
        "max_train_steps": case.steps,
        "learning_rate": 1e-4 if case.method == "lora" else 2e-6,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "checkpointing_steps": 10**6,
        "seed": 1,
        "mixed_precision": _precision(),
        **({"rank": case.rank} if case.method == "lora" else {}),
    }
    return ["--center_crop", *(f"--{name}={value}" for name, value in options.items())]


def _precision() -> str:
    """What ours is by itself on this device; the scripts would take full precision."""
    import torch

    if not torch.cuda.is_available():
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def write_model(folder: Path, source: Path) -> None:
    """The model as a Diffusers folder, which is what these scripts read."""
    from dreambooth.engine import families
    from dreambooth.engine.checkpoints import original
    from dreambooth.engine.checkpoints.diffusers_folder import write_folder
    from dreambooth.engine.checkpoints.source import open_model
    from dreambooth.engine.families.pipelines import pipeline

    opened = open_model(project.create(Folders(folder.with_name("for-peers")), folder.name, source))
    write_folder(folder, pipeline(families.skeleton(opened)), original.own_entries(opened, {}, half=False))
