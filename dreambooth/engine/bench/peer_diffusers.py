"""diffusers' own DreamBooth scripts, for SD 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dreambooth.core import project
from dreambooth.core.project import Folders
from dreambooth.engine.bench.cases import RATES, Case, precision

_SCRIPTS = {"full": "train_dreambooth.py", "lora": "train_dreambooth_lora.py"}
FILES = tuple(_SCRIPTS.values())


@dataclass(frozen=True)
class Diffusers:
    """The scripts by method. They run with our packages."""

    scripts: dict[str, Path]
    name: ClassVar = "diffusers"
    title: ClassVar = "diffusers' script"
    trainable: ClassVar = "SD 1"
    layers: ClassVar = "attention"
    reads_folder: ClassVar = True

    @classmethod
    def at(cls, checkout: Path) -> Diffusers | None:
        for folder in (checkout / "examples" / "dreambooth", checkout):
            found = {method: folder / name for method, name in _SCRIPTS.items()}
            if all(path.is_file() for path in found.values()):
                return cls(found)
        return None

    def trains(self, case: Case, *, large: bool) -> bool:
        return case.family == "sd1"

    def told(self, case: Case, model: Path, pictures: Path, prompt: str, work: Path) -> dict[str, Any]:
        options = {
            "pretrained_model_name_or_path": model,
            "instance_data_dir": pictures,
            "instance_prompt": prompt,
            "output_dir": work / "output",
            "resolution": case.resolution,
            "train_batch_size": case.batch,
            "max_train_steps": case.steps,
            "learning_rate": RATES[case.method],
            "lr_scheduler": "constant",
            "lr_warmup_steps": 0,
            "checkpointing_steps": 10**6,
            "seed": 1,
            "mixed_precision": precision(),
            **({"rank": case.rank} if case.method == "lora" else {}),
        }
        arguments = ["--center_crop", *(f"--{name}={value}" for name, value in options.items())]
        return {"script": str(self.scripts[case.method]), "arguments": arguments}


def write_model(folder: Path, source: Path) -> None:
    """The model as a Diffusers folder, which is what these scripts read."""
    from dreambooth.engine import families
    from dreambooth.engine.checkpoints import original
    from dreambooth.engine.checkpoints.diffusers_folder import write_folder
    from dreambooth.engine.checkpoints.source import open_model
    from dreambooth.engine.families.pipelines import pipeline

    opened = open_model(project.create(Folders(folder.with_name("for-peers")), folder.name, source))
    write_folder(folder, pipeline(families.skeleton(opened)), original.own_entries(opened, {}, half=False))
