"""The bench that asks whether a run knows when it is best."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from dreambooth.core import job_list
from dreambooth.core.errors import UserError
from dreambooth.core.job_folder import Job
from dreambooth.core.settings import parse
from dreambooth.engine.bench import best
from dreambooth.ui.describe import of_benches


def _job(folder: Path, **wanted: Any) -> Job:
    return job_list.create(folder / "job", {"kind": "bench-best", "out": str(folder / "out"), **wanted}, "{}")


@pytest.mark.parametrize("name", best.RUNS)
def test_its_runs_can_be_done(name: str) -> None:
    parse(best.RUNS[name])


@pytest.mark.thorough
def test_a_row_for_each_result_with_what_it_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best, "DRAWN", 2)
    name = "LoRA, class by prediction"
    short = {"intervals.num_train_epochs": 2, "intervals.validate_every": 1, "intervals.save_model_every": 1}
    monkeypatch.setitem(best.RUNS, name, {**best.RUNS[name], **short})
    found = best.run(_job(tmp_path, runs=[name], seeds=[1]))
    rows = json.loads((tmp_path / "out" / "best.json").read_text())[f"{name}, seed 1"]
    assert [row["images"] for row in rows] == [6, 10]  # in batches of two
    assert all(row["held_out"] != 0 and 0 <= row["likeness_on_backgrounds"] <= 1 for row in rows)
    assert found["rows"][0]["end_images"] == 10
    assert "at 10" in of_benches.bench({"part": "best", **found})
    ElementTree.parse(found["plot"])
    stopped = _job(tmp_path, runs=[name], seeds=[1])
    stopped.request("stop")
    with pytest.raises(UserError, match="goes on there"):
        best.run(stopped)


def _rows(*drawn: tuple[int, float, float]) -> list[dict[str, Any]]:
    return [
        {"step": n, "images": n, "held_out": held, "learned": 0.5, "drift": None, "likeness_on_backgrounds": worth}
        for n, worth, held in drawn
    ]


def test_a_persons_models_beside_it_stay(tmp_path: Path) -> None:
    model = tmp_path / "out" / "models" / "Stable-diffusion" / "mine.safetensors"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"weights")
    name = next(iter(best.RUNS))
    (tmp_path / "out" / "best.json").write_text(json.dumps({f"{name}, seed 1": _rows((1, 0.2, 0.1), (2, 0.5, 0.3))}))
    (tmp_path / "out" / best.WORK / "models").mkdir(parents=True)
    best.run(_job(tmp_path, runs=[name], seeds=[1]))
    assert model.read_bytes() == b"weights"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["best.json", "best.svg", "models"]


def test_what_is_told_of_a_run() -> None:
    said = best.summary("a", _rows((1, 0.2, 0.1), (2, 0.5, 0.3), (3, 0.6, 0.2), (4, 0.1, 0.0)))
    assert [said[f"{at}_images"] for at in ("best", "end", "highest")] == [2, 4, 3]
    assert [said[f"{at}_worth"] for at in ("best", "end", "highest")] == [0.5, 0.1, 0.6]
