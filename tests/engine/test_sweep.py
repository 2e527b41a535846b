"""The sweep: its options change what they say, its figures are kept, its picture shows which differ for sure."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from dreambooth.core import job_list, settings
from dreambooth.core.errors import UserError
from dreambooth.core.job_folder import Job
from dreambooth.engine.bench import sweep, sweep_plot


@pytest.mark.parametrize("option", sweep.OPTIONS, ids=lambda option: option.name)
def test_an_option_is_one_change_of_its_recipe(option: sweep.Option) -> None:
    chosen = settings.to_json(settings.parse(option.settings(1)))
    recipe = settings.to_json(settings.parse({**sweep.RECIPES[option.recipe], "general.seed": 1}))
    assert (chosen == recipe) == (option.label == "" or option.rank > 0)  # a result can be measured as another file


def test_names_are_unlike() -> None:
    names = [option.name for option in sweep.OPTIONS]
    assert len(names) == len(set(names))


def _job(folder: Path, **wanted: Any) -> Job:
    return job_list.create(folder / "job", {"kind": "sweep", "out": str(folder / "out"), **wanted}, "{}")


@pytest.mark.thorough
def test_what_was_measured_is_kept_and_the_rest_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "PICTURES", 4)
    short = {**sweep.RECIPES["LoRA"], "intervals.num_train_epochs": 1, "concepts.0.num_class_images_per": 1}
    monkeypatch.setitem(sweep.RECIPES, "LoRA", short)
    first = sweep.run(_job(tmp_path, options=["LoRA"], seeds=[1]))
    assert [row["name"] for row in first["rows"]] == [sweep.UNTRAINED, "LoRA"]
    assert all(0 <= row["likeness"] <= 1 for row in first["rows"])
    kept = json.loads((tmp_path / "out" / "sweep.json").read_text())
    kept["LoRA"]["1"]["likeness"] = 0.75  # a mark: it is not measured again
    (tmp_path / "out" / "sweep.json").write_text(json.dumps(kept))
    stopped = _job(tmp_path, options=["LoRA"], seeds=[1, 2])
    stopped.request("stop")
    with pytest.raises(UserError, match="goes on there"):
        sweep.run(stopped)
    again = sweep.run(_job(tmp_path, options=["LoRA"], seeds=[1]))
    assert again["rows"][1]["likeness"] == 0.75
    ElementTree.parse(again["plot"])


def test_a_persons_models_beside_it_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    model = out / "models" / "Stable-diffusion" / "mine.safetensors"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"weights")
    figures = {key: 0.5 for key, _, _ in sweep_plot.COLUMNS}
    (out / "sweep.json").write_text(json.dumps({sweep.UNTRAINED: {"0": figures}, "LoRA": {"1": figures}}))
    sweep.run(_job(tmp_path, options=["LoRA"], seeds=[1]))
    assert model.read_bytes() == b"weights"
    assert sorted(path.name for path in out.iterdir()) == ["models", "sweep.json", "sweep.svg"]


def _row(name: str, low: float, high: float, seeds: int = 2) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "seeds": seeds}
    for key, _, _ in sweep_plot.COLUMNS:
        row |= {key: (low + high) / 2, f"{key}_span": (low, high)}
    return row


def test_better_and_worse_are_only_those_beyond_the_seeds() -> None:
    base = _row("LoRA", 0.4, 0.5)
    drawn = sweep_plot.draw(
        [base, _row("LoRA: up", 0.6, 0.7), _row("LoRA: alike", 0.45, 0.6), _row("LoRA: once", 0.7, 0.7, seeds=1)]
    )
    circles = [part for part in drawn.splitlines() if part.startswith("<circle")]
    kinds = [part.split('"')[1] for part in circles]
    assert kinds[:5] == ["alike"] * 5
    assert kinds[5:10] == ["better"] * 4 + ["worse"]  # less class drift is better
    assert kinds[10:] == ["alike"] * 10  # within the seeds, or of one seed alone
