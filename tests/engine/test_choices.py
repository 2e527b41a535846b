"""What the choices cost, and the planner's table: what can be measured of them goes together, and a part can be
counted by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dreambooth.core.errors import UserError
from dreambooth.core.job_folder import Job
from dreambooth.core.job_list import create
from dreambooth.core.models.families import FAMILIES
from dreambooth.core.settings import parse
from dreambooth.engine.bench import choices, table
from dreambooth.engine.bench.measuring import Bench
from dreambooth.engine.bench.versions import COUNTED, versions


@pytest.mark.parametrize("method", choices.CHOICES)
def test_every_choice_can_be_made(method: str) -> None:
    for choice in choices.CHOICES[method]:
        parse({"general.method": method, **choice.changes})
    assert choices.CHOICES[method][0] is choices.PLAIN


def test_a_choice_is_held_against_the_plain_training_of_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever order a machine gets slower meanwhile."""
    turn, said = [0], list[str]()

    def measured(bench: Bench, module: str, case: Any, **about: Any) -> dict[str, Any]:
        assert module == "choices_run"
        if "model" in about:
            return {"sliced": [1.0, 2.0], "tiled": [1.5, 3.0]}
        turn[0] += 1
        flat = Job(Path(about["job"])).settings()
        cost = 1.5 if flat["batching.gradient_checkpointing"] else 1.0
        slowness = 1 + (turn[0] - 1) // len(choices.CHOICES["lora"])
        said.append(flat["general.method"])
        seconds = slowness * cost
        return {"seconds": seconds, "cpu_seconds": 2 * seconds, "peak_bytes": 7, "device_peak_bytes": 0}

    monkeypatch.setattr(Bench, "measured", measured)
    monkeypatch.setattr(choices, "TURNS", 2)
    job = create(tmp_path / "job", {"kind": "bench-choices", "out": str(tmp_path / "out"), "method": "lora"}, "{}")
    found = choices.measure(job)
    assert set(said) == {"lora"}
    ratios = {row["choice"]: row["to_plain"] for row in found["rows"]}
    assert ratios["plain"] == {"clock": 1.0, "cpu": 1.0}
    assert ratios["checkpointed_share 1"] == {"clock": 1.5, "cpu": 1.5}
    assert found["tiles"] == {"clock": 1.5, "cpu": 1.5}
    assert not (tmp_path / "out").exists()
    job.request("stop")
    with pytest.raises(UserError, match="Stopped as asked"):
        choices.measure(job)


def test_a_part_of_the_table_is_counted_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table.drawing_footprint, "predictions", lambda family: {"half": [0.0, 7.5]})
    path = tmp_path / "table.json"
    there = {
        "versions": versions(COUNTED),
        "families": {"sd1": {"steps": {}}},
        "vae": {"encode": [0, 1]},
        "drawing": {},
    }
    path.write_text(json.dumps(there))
    asked = {"kind": "bench-memory", "out": str(path), "again": "drawing"}
    table.run(create(tmp_path / "job", asked, "{}"))
    made = json.loads(path.read_text())
    assert {key: value for key, value in made.items() if key != "drawing"} == {
        key: value for key, value in there.items() if key != "drawing"
    }
    assert made["drawing"] == {family: {"half": [0.0, 7.5]} for family in FAMILIES}
    path.write_text(json.dumps({**there, "versions": {"torch": "1.0"}}))
    with pytest.raises(UserError, match="count it all, without --again"):
        table.run(create(tmp_path / "job", asked, "{}"))
