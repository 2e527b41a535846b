"""Exporting from a state: the very file that the run would have written then."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from PIL import Image, ImageChops
from safetensors.torch import load_file

from dreambooth.core.errors import UserError
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import parse
from dreambooth.engine import export, generate, worker
from dreambooth.engine.run import hooks
from dreambooth.service import deleting, exporting, launcher, runs, short_jobs
from tests.engine.runs import LORA, SHORT, new_run, same, saved, tiny_project
from tests.engine.runs import exported as exported_of_file

STEP = 3
FULL = {"intervals.max_train_steps": 6, "batching.train_batch_size": 2}


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("exported"))


def paused(star: Project, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Job:
    job = new_run(star, **{**FULL, **changes})
    AcceleratorState._reset_state(reset_partial_state=True)  # each run has a process of its own
    with monkeypatch.context() as patch:
        patch.setattr(hooks.RunHooks, "requests", lambda own: {"pause"} if own.session.step == STEP else set())
        assert worker.run(job) == "paused"
    return job


def exported(star: Project, job: Job, **wanted: Any) -> Path:
    fields = exporting.fields(star, {"run": int(job.folder.name), "from_step": STEP, **wanted})
    errand = launcher.new_errand(Folders(star.folder.parents[1]), star, "export", parse({}), **fields)
    written = Path(export.run(errand)["path"])
    assert sorted(path.name for path in errand.folder.iterdir()) == ["events.jsonl", "job.json", "settings.json"]
    return written


def stopped(job: Job, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The result of the run, stopped at once where it goes on."""
    with monkeypatch.context() as patch:
        patch.setattr(hooks.RunHooks, "requests", lambda own: {"stop"})
        assert worker.run(job) == "stopped"
    return saved(job)[-1]


BF16 = {"memory.bf16_weights": True, "tuning.mixed_precision": "bf16"}
KINDS: dict[str, dict[str, Any]] = {
    "the whole model, its average": {"tuning.use_ema": True},
    "a part of it": {
        "tuning.unet_layers": "attention",
        "tuning.text_encoder_ratio": 0,
        "memory.bf16_weights": True,
        "tuning.mixed_precision": "bf16",
    },
    "without a schedule": {"optimizer.name": "adamw_schedule_free", "learning.learning_rate": 0.01},
    "a lora, its average in half": {**LORA, "tuning.use_ema": True, "saving.half_model": True},
    "dora": {**LORA, "lora.kind": "dora"},
    "lokr": {**LORA, "lora.kind": "lokr"},
    "oft": {**LORA, "lora.kind": "oft"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_the_run_would_have_written(star: Project, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = paused(star, monkeypatch, **KINDS[kind])
    state = {path: path.read_bytes() for path in job.state.rglob("*") if path.is_file()}
    early = exported(star, job)
    assert {path: path.read_bytes() for path in job.state.rglob("*") if path.is_file()} == state, "the run is as it was"
    late = stopped(job, monkeypatch)
    assert early.parent == late.parent and early != late
    assert early.stem.split("-")[0] == late.stem.split("-")[0] == "sd1_6"
    assert same(load_file(early), load_file(late))


def test_it_is_deleted_with_the_yaml_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run rests, and goes on without it."""
    made = tiny_project(tmp_path, "sd2")
    job = paused(made, monkeypatch)
    early = exported(made, job)
    assert {path.suffix for path in early.parent.iterdir()} == {".safetensors", ".yaml"}
    deleting.delete(Folders(tmp_path / "models"), made, str(early))
    assert not list(early.parent.iterdir()) and not job.story().exported


def test_a_lora_is_merged_and_a_checkpoint_named_otherwise(
    star: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = paused(star, monkeypatch, **LORA)
    merged = exported(star, job, to=str(tmp_path / "merged.safetensors"), merge=1.0)
    base, with_it = load_file(star.source), load_file(merged)
    assert with_it.keys() == base.keys() and not same(base, with_it)
    whole = exported(star, paused(star, monkeypatch), to=str(tmp_path / "diffusers"), half=True)
    assert (whole / "unet").is_dir()


@pytest.mark.thorough
def test_a_state_as_a_lora_is_its_results_as_one(
    star: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for changes in ({}, LORA):
        job = paused(star, monkeypatch, **changes)
        kind = "lora" if changes else "full"
        early = exported(star, job, to=str(tmp_path / f"{kind}-early.safetensors"), rank=1)
        with pytest.raises(UserError, match="to: it is empty"):
            exported(star, job, rank=1)
        late = stopped(job, monkeypatch)
        of_result = {"weights": str(late), "to": str(tmp_path / f"{kind}-late.safetensors"), "rank": 1}
        assert same(load_file(early), load_file(exported_of_file(star, **of_result)["path"]))
        assert runs.outputs(star)[1]["path"] == str(early) and runs.outputs(star)[1]["kind"] == "lora"


def test_an_exported_file_is_among_the_results(star: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = paused(star, monkeypatch, **LORA)
    early = exported(star, job)
    merged = exported(star, job, to=str(tmp_path / "merged.safetensors"), merge=1.0)
    exported(star, job, to=str(tmp_path / "diffusers"), merge=1.0)  # cannot be drawn with
    late = stopped(job, monkeypatch)
    there = [one for one in runs.outputs(star) if one["run"] == job.name]
    known = {"run": job.name, "images": 2 * STEP, "best": False}
    assert there == [
        {**known, "path": str(late), "kind": "lora", "bytes": late.stat().st_size, "step": None},
        {**known, "path": str(merged), "kind": "checkpoint", "bytes": merged.stat().st_size, "step": STEP},
        {**known, "path": str(early), "kind": "lora", "bytes": early.stat().st_size, "step": STEP},
    ]
    assert runs.weights(star, "", base=False) == late, "what is meant by the newest is what the run has come to"
    assert runs.settings_of(star, early).lora.rank == LORA["lora.rank"] != parse({}).lora.rank


def test_a_lora_that_went_on_from_a_file(star: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lokr = {**LORA, "lora.kind": "lokr"}
    first = exported(star, paused(star, monkeypatch, **lokr), to=str(tmp_path / "first.safetensors"))
    job = paused(star, monkeypatch, **LORA, **{"lora.start_file": str(first)})
    assert same(load_file(exported(star, job)), load_file(stopped(job, monkeypatch)))


def test_what_cannot_be_exported_is_said_in_a_sentence(
    star: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = paused(star, monkeypatch, **LORA)
    number = int(job.folder.name)

    def refused(**wanted: Any) -> str:
        with pytest.raises(UserError) as error:
            exported(star, job, **wanted)
        assert len(error.value.problems) == 1
        return str(error.value)

    assert refused(from_step=2).endswith(f"run sd1/{number} has no state after step 2 (there: 3).")
    assert "has no run 99 (there: 1" in refused(run=99)
    assert "exclude each other" in refused(base=True)
    assert "must be a whole number" in refused(from_step="three")
    assert "exists already" in refused(to=str(star.source))
    assert "one .safetensors file" in refused(to=str(tmp_path / "lora.ckpt"))
    manifest = next(job.state.rglob("manifest.json"))
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "sha256": ""}))
    assert "altered or cut short; take another state." in refused()
    stopped(paused(star, monkeypatch, **LORA), monkeypatch)
    other = new_run(star, **{"imagic.enabled": True, "general.method": "full"})
    (other.state / f"{STEP:09}").mkdir(parents=True)
    assert "one of Imagic" in refused(run=int(other.folder.name))
    newest = launcher.new_run(Folders(star.folder.parents[1]), star, parse({**SHORT}))
    assert f"run {newest.name} has no state after step 3 (there: none" in refused(run=None)


def apart(one: bytes, other: bytes) -> int:
    """By how many of 255 two pictures differ at most."""
    first, second = (Image.open(io.BytesIO(data)).convert("RGB") for data in (one, other))
    return max(high for _, high in ImageChops.difference(first, second).getextrema())


@pytest.mark.thorough
def test_pictures_of_a_state_are_those_of_its_export(
    star: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = Folders(star.folder.parents[1])
    drawing = {"prompt": "a red star", "steps": 2, "width": 64, "height": 64, "seed": 7}
    taught = paused(star, monkeypatch, **{**LORA, "saving.half_model": False})
    whole = paused(star, monkeypatch)
    states = [{"run": int(job.folder.name), "from_step": STEP} for job in (taught, whole)]
    files = [exported(star, job, to=str(tmp_path / f"{n}.safetensors")) for n, job in enumerate((taught, whole))]

    def drawn(**wanted: Any) -> dict[str, Any]:
        make = short_jobs.sheet if "sheet" in wanted else short_jobs.drawing
        chosen, fields = make(star, {**drawing, **wanted})
        errand = launcher.new_errand(folders, star, "generate", chosen, **fields)
        result = generate.run(errand)
        assert not list(errand.folder.glob("state-*")), "what was made for it is gone"
        return result

    sheet = drawn(sheet={"weights": [*states, *map(str, files), ""], "lora_weights": [0.5, 1]})
    names = [Path(path).stem for path in sheet["pictures"]]
    assert names == ["00-00", "00-01", "01-00", "02-00", "02-01", "03-00", "04-00"]
    cells = {name: Path(path).read_bytes() for name, path in zip(names, sheet["pictures"])}
    assert cells["00-00"] == cells["02-00"] != cells["04-00"]
    assert cells["00-01"] == cells["02-01"] != cells["00-00"]
    # A CPU rounds by where values lie in memory, which for those of a mapped file hangs on its name's length.
    assert apart(cells["01-00"], cells["03-00"]) <= 2 < apart(cells["01-00"], cells["04-00"])
    with Image.open(sheet["sheet"]) as all_of_them:
        assert all_of_them.width > all_of_them.height / 5 > 64
    single = drawn(**states[0], lora_weight=1)["pictures"]
    with Image.open(single[0]) as one, Image.open(sheet["pictures"][1]) as cell:
        assert one.tobytes() == cell.tobytes()
    with pytest.raises(UserError, match="exclude each other"):
        short_jobs.drawing(star, {**drawing, **states[0], "base": True})
    with pytest.raises(UserError, match=r"from_step: it is missing|from-step: it is missing"):
        short_jobs.sheet(star, {**drawing, "sheet": {"weights": [{"run": 1}]}})
