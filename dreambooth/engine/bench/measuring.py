"""The folder in which trainings are measured, ours and those of others, each a process of its own on the same files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreambooth.core import project
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURES, PROJECT, SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.job_list import new_run
from dreambooth.core.project import Folders
from dreambooth.core.settings import parse
from dreambooth.engine.bench import peer_diffusers
from dreambooth.engine.bench.cases import Case
from dreambooth.engine.bench.peers import Peer

PROMPT = "a photo of sks star"


class Bench:
    """The folder in which the measured processes work."""

    def __init__(self, job: Job, folder: Path, asked: dict[str, Any]) -> None:
        self.job, self.folder, self.asked = job, folder, asked
        self.large = bool(asked.get("large"))
        self.models = Folders(folder / "models")
        self.pictures = folder / "pictures"  # alone, without captions: others open every file
        self.pictures.mkdir(parents=True)
        for path in SUBJECT_PICTURES.glob("*.png"):
            shutil.copy(path, self.pictures)
        self.count = 0
        self.environment: dict[str, str] = {}  # variables that the measured processes have beside ours

    def ours(self, case: Case, by: str = "own_run", changes: dict[str, Any] | None = None) -> dict[str, Any]:
        """A training of ours, measured by a module beside this one; `changes` are to its settings."""
        settings = parse(
            {
                "general.method": case.method,
                "general.resolution": case.resolution,
                "concepts.0.instance_data_dir": str(self.pictures),
                "concepts.0.instance_prompt": PROMPT,
                "intervals.max_train_steps": case.steps,
                "intervals.save_preview_every": 0,
                "intervals.save_state_every": 0,
                "batching.train_batch_size": case.batch,
                "lora.rank": case.rank,
                "lora.alpha": float(case.rank),
                "lora.layers": case.layers,
                "previews.count": 0,
                "pictures.buckets": False,
                **self.asked.get("settings", {}),
                **(changes or {}),
            }
        )
        made = project.create(self.models, f"m{self.count}", self.source(case.family))
        work = new_run(self.models, made, settings)
        found = {**self.measured(by, case, job=str(work.folder)), "warnings": work.warnings()}
        shutil.rmtree(made.folder)
        return found

    def peer(
        self, case: Case, peer: Peer, by: str = "peer_run", more: Sequence[str] = (), **about: Any
    ) -> dict[str, Any]:
        """A training of a peer's, measured by a module beside this one; `more` are arguments of its script."""
        work = self.folder / f"{peer.name}-work"
        model = self.peer_model(case.family) if peer.reads_folder else self.source(case.family)
        told = peer.told(case, model, self.pictures, PROMPT, work)
        try:
            return self.measured(by, case, **{**told, "arguments": [*told["arguments"], *more], **about})
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def peer_model(self, family: str) -> Path:
        """The model as diffusers' scripts read it."""
        model = self.folder / f"{family}-folder"
        if not model.exists():
            peer_diffusers.write_model(model, self.source(family))
        return model

    def source(self, family: str) -> Path:
        if not self.large:
            return MINIATURES[family]
        path = self.folder / f"{family}.safetensors"
        if not path.exists():
            import torch

            from dreambooth.engine.bench.random_model import write_random

            write_random(path, family, torch.float16)
        return path

    def measured(self, module: str, case: Case, **about: Any) -> dict[str, Any]:
        """One process, timed from its start. Raises UserError with its last line if it fails."""
        self.count += 1
        told, out, log = (self.folder / f"{self.count}.{end}" for end in ("about.json", "out.json", "log"))
        told.write_text(json.dumps({**about, "out": str(out), "steps": case.steps, "started": time.time()}))
        command = [about.get("python", sys.executable), "-m", f"dreambooth.engine.bench.{module}", str(told)]
        with open(log, "w", encoding="utf-8") as file:
            variables = {**os.environ, "OMP_NUM_THREADS": "1", **self.environment}
            if "python" in about:  # whose packages are not ours
                variables.pop("PYTHONPATH", None)
            code = subprocess.call(command, cwd=PROJECT, env=variables, stdout=file, stderr=file)
        if code or not out.exists():
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [f"exit code {code}"]
            raise UserError(f"{case.title}: the measured process failed: {lines[-1]}")
        return dict(json.loads(out.read_text(encoding="utf-8")))
