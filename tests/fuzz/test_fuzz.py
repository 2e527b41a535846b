"""Whatever lies in a file or comes in a request: a sentence or an answer, never a traceback, a hang, or a write elsewhere.

`python -m tests -m fuzz` gives each of the targets a thousand inputs and more, 13,000 in all; without it each gets a few.
"""

# ruff: noqa: E501
from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from dreambooth.core import captions, device, focal_point, job_list, picture_names, project, schema, settings, tags
from dreambooth.core.buckets import Bucket
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.models import checkpoint
from dreambooth.core.project import Folders
from dreambooth.core.settings import Settings, on_resume
from dreambooth.core.settings.dataset import Captions, Concept, Pictures
from dreambooth.engine.data import cropping
from dreambooth.host.standalone import Standalone
from dreambooth.service import (
    api,
    import_paths,
    import_settings,
    launcher,
    models,
    queue,
    report,
    resume_run,
    runs,
    thumbnails,
)
from dreambooth.ui import command_line, commands
from tests.fuzz.guard import confined
from tests.fuzz.inputs import TEXTS, VALUES, damaged, dumped, json_bytes, nearly

Target = tuple[st.SearchStrategy[Any], Callable[[Path, Any], None]]
TARGETS: dict[str, Target] = {}
FEW, MANY = 15, 1000


def target(inputs: st.SearchStrategy[Any]) -> Callable[[Callable[[Path, Any], None]], None]:
    def add(check: Callable[[Path, Any], None]) -> None:
        TARGETS[check.__name__.replace("_", " ")] = inputs, check

    return add


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A models folder with a model and a run, in which everything happens."""
    folder = tmp_path_factory.mktemp("fuzz")
    make_model(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DREAMBOOTH_ENGINE_PYTHON", sys.executable)
        patch.setattr("dreambooth.service.environment.is_current", lambda **_: False)  # no job may start
        for environment in ("environment", "page_environment"):
            patch.setattr(f"dreambooth.service.{environment}.ensure", no_engine)
        patch.chdir(folder)
        patch.setattr(sys, "dont_write_bytecode", True)
        yield folder


def make_model(folder: Path) -> None:
    folders = Folders(folder / "models")
    job_list.new_run(folders, project.create(folders, "star", MINIATURE), settings.parse(SETTINGS))


def no_engine(*_: object, **__: object) -> None:
    raise UserError("There is no engine here.")


@contextlib.contextmanager
def told() -> Any:
    """A person is told in sentences, if at all."""
    try:
        yield
    except UserError as error:
        assert error.problems
        for one in error.errors:
            assert one.sentence.strip()
            assert "Traceback" not in one.sentence


SETTINGS = schema.to_flat(settings.parse({"concepts.0.instance_data_dir": str(SUBJECT_PICTURES)}))
NUMBERS = st.sampled_from(["1", "0", "-1", "x", "9" * 30])
KEYS = st.sampled_from([leaf.key.replace(".N.", ".0.") for leaf in schema.leaves(Settings)]) | TEXTS
FLAT = st.dictionaries(KEYS, VALUES, max_size=5)


@target(json_bytes(SETTINGS) | FLAT.map(dumped) | json_bytes({"concepts": [{"repeats": 2}], "lora": {"rank": 4}}))
def settings_files(base: Path, data: bytes) -> None:
    (base / "s.json").write_bytes(data)
    with told():
        flat, _ = settings.read_file(base / "s.json")
        models.problems(flat)
        settings.to_json(settings.parse(flat))
    options = argparse.Namespace(settings=str(base / "s.json"), overrides={"lora.rank": "4"}, preset="", data=None)
    with told():
        settings.parse(commands.given_settings(options))


@target(FLAT | nearly(SETTINGS))
def settings_on_resume(base: Path, given: Any) -> None:
    with told():
        changed = on_resume.changes(SETTINGS, schema.flatten(given) if isinstance(given, dict) else {})
        assert not [key for key in changed if on_resume.why_not(key) and not key.startswith("batching.")]


COMMANDS = st.sampled_from(
    ["inspect", "create", "models", "set", "rename", "duplicate", "delete", "check", "crop", "import", "tokens", "class-images", "train", "runs", "pause", "resume", "stop",
     "report", "generate", "export", "settings", "presets", "bench", "ui", "demo", "none"]
)  # fmt: skip
FLAGS = st.sampled_from(
    ["--source", "--settings", "--preset", "--to", "--prompt", "--count", "--weights", "--merge", "--port", "--out", "--json",
     "--discard", "--base", "--lora.rank", "--concepts.0.instance_data_dir", "--revision", "--family", "--sheet", "--"]
)  # fmt: skip
WORDS = st.lists(FLAGS | st.just("star") | st.just("star/1") | KEYS.map("--{}".format) | TEXTS | NUMBERS, max_size=6)


@target(st.tuples(COMMANDS, WORDS))
def command_lines(base: Path, words: tuple[str, list[str]]) -> None:
    line = [words[0], *words[1], "--data", str(base / "models")]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            code = command_line.main(line)
        except SystemExit as error:  # of argparse: --help, or what it cannot read
            code = error.code
    assert code in (0, 2)
    assert "Traceback" not in said.getvalue()
    shutil.rmtree(base / "models" / "dreambooth" / "other", ignore_errors=True)
    if not (base / "models" / "dreambooth" / "star" / "model.json").exists():  # `rename star x` or `delete star`
        shutil.rmtree(base / "models")
        make_model(base)


EVENTS: list[dict[str, Any]] = [
    {"event": "started", "time": 1.0, "kind": "train", "pid": 3, "parent": 2, "boot": "x", "memory_kills": 0},
    {"event": "stage", "name": "encoding pictures", "done": 1, "total": 5},
    {"event": "resumed", "step": 1},
    {"event": "step", "step": 2, "steps": 9, "images": 2, "loss": 0.5, "rate": 1e-4, "steps_per_second": 2.0,
     "seconds_left": 2.5, "memory_bytes": 0, "rates": {"unet": 1e-4}},
    {"event": "preview", "images": 2, "paths": ["a/2-0-0.png"], "sheet": "a.png"},
    {"event": "picture", "path": "a.png", "kind": "class"},
    {"event": "state", "step": 2, "path": "s", "seconds": 0.1, "stalled": 0.0},
    {"event": "saved", "kind": "lora", "path": "x.safetensors", "bytes": 5, "images": 2},
    {"event": "warning", "text": "careful"},
    {"event": "failed", "problems": ["a"], "errors": [{"what": "a", "where": "", "do": "", "log": ""}], "refused": True},
    {"event": "done", "answer": 1},
]  # fmt: skip
LINES = st.lists(st.sampled_from(EVENTS).flatmap(lambda one: st.just(one) | nearly(one)), max_size=8)


@target(LINES.map(lambda some: b"\n".join(map(dumped, some))) | LINES.map(
    lambda some: b"".join(dumped(one) + b"\n" for one in some)) | damaged(b"\n".join(map(dumped, EVENTS))) | st.binary())  # fmt: skip
def events(base: Path, data: bytes) -> None:
    job = Job(base / "models" / "dreambooth" / "star" / "runs" / "0001")
    (job.folder / "events.jsonl").write_bytes(data)
    look_at(job)


FILES = ["job.json", "changes.json", "settings.json", "exit.json", "log.txt", "watched", "waiter", "alive", "state"]
REQUESTED = ["start", "pause", "stop", "discard", "save", "preview", ".DS_Store", "é", "start.tmp"]


@target(
    st.tuples(
        st.dictionaries(st.sampled_from(FILES), json_bytes({"kind": "train", "model": "star", "pid": 3, "code": -9})),
        st.dictionaries(st.sampled_from(REQUESTED), st.binary(max_size=20)),
    )
)
def requests_and_files_of_a_run(base: Path, found: tuple[dict[str, bytes], dict[str, bytes]]) -> None:
    folder = base / "models" / "dreambooth" / "star" / "runs" / "0002"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "requests").mkdir(parents=True)
    (folder / "job.json").write_text('{"kind": "train", "model": "star"}')
    for name, data in found[0].items():
        (folder / name).write_bytes(data)
    for name, data in found[1].items():
        (folder / "requests" / name).write_bytes(data)
    look_at(Job(folder))
    folders = Folders(base / "models")
    with told():
        queue.waiting(folders)
    with told():
        queue.tidy(folders)
    shutil.rmtree(folder, ignore_errors=True)


def look_at(job: Job) -> None:
    """Everything that is asked of a job's folder."""
    assert job.status() in ("new", "queued", "running", "paused", "stopped", "done", "failed", "lost")
    for ask in (runs.summary, runs.outcome, launcher.result, report.build, Job.settings, resume_run.check_resumable):
        with told():
            api._Json(None).render(ask(job) if ask is not report.build else len(report.build(job)))
    with told():
        resume_run.prepare(Folders(job.folder.parents[3]), job, {"previews.count": 2})
    (job.folder / "changes.json").unlink(missing_ok=True)


PLACES = st.sampled_from(["star", "other"]) | TEXTS
BODIES = {
    "name": "star", "source": "/x.safetensors", "settings": {"lora": {"rank": 3}}, "origin": {"family": "sd1"},
    "path": "/x", "to": "y", "kind": "export", "request": "pause", "prompt": "a dog", "weights": "", "count": 1, "seed": 1,
    "merge": 0.5, "candidates": 3, "revision": "", "base": True, "preset": "person", "file": "1.png", "text": "sks",
    "width": 64, "x": 0.5, "y": 0.5, "zoom": 2,
}  # fmt: skip
QUERIES = st.dictionaries(
    st.sampled_from(["file", "side", "kind", "offset", "limit", "run", "changed", "seal"]), TEXTS | NUMBERS
)


@target(st.tuples(st.integers(0, 10_000), PLACES, NUMBERS, json_bytes(BODIES), QUERIES))
def api_requests(base: Path, asked: tuple[int, str, str, bytes, dict[str, str]]) -> None:
    which, name, number, body, query = asked
    app = FastAPI()
    app.include_router(api.router(Standalone(str(base / "models"))))
    client = TestClient(app, base_url="http://here")
    every = sorted(
        (path, method.upper())
        for path, methods in app.openapi()["paths"].items()
        for method in methods
        if not path.startswith("/dreambooth/engine")
    )
    assert len(every) > 40
    path, method = every[which % len(every)]
    if (
        method == "DELETE"
        or path.endswith(("rename", "/models"))
        or (method == "PUT" and path.endswith(("caption", "crop")))
    ):
        name, body = "other", body.replace(b"star", b"other")
    place = path.replace("{name}", encoded(name)).replace("{number}", number).replace("{concept}", number)
    said = client.request(
        method,
        place + "?" + "&".join(f"{key}={encoded(value)}" for key, value in query.items()),
        content=body if method != "GET" else None,
        headers={"content-type": "application/json"},
    )
    assert said.status_code < 500, said.text
    if said.status_code in (400, 401, 403, 413):
        assert all(one["what"].strip() for one in said.json()["errors"])


def encoded(text: str) -> str:
    return quote(text, safe="", errors="surrogatepass")


@target(
    st.tuples(TEXTS, TEXTS, TEXTS, TEXTS, st.binary(max_size=60) | TEXTS.map(dumped), st.integers(0, 5), st.booleans())
)
def words_and_caption_files(base: Path, some: tuple[str, str, str, str, bytes, int, bool]) -> None:
    prompt, token, kind, name, data, keep, shuffles = some
    picture = base / "pictures" / "p.png"
    picture.parent.mkdir(exist_ok=True)
    picture.with_suffix(".txt").write_bytes(data)
    concept = Concept(instance_prompt=prompt, class_prompt=name, instance_token=token, class_token=kind)
    options = Captions(shuffle_tags=shuffles, keep_tags=keep, prefix=name[:20], suffix=token[:20], variants=4)
    options = replace(options, keep_marker=kind[:3], tie=token[:2], tag_dropout=keep / 10, weighted=shuffles)
    with told():
        for line in captions.instance_words(concept, picture).split("\n"):
            texts = captions.variants(line, options, 3)
            assert 1 <= len(texts) <= 4
    with told():
        captions.class_words(concept, captions.file_words(picture))
    picture_names.words(name)
    tags.parted(prompt, weighted=True)


@target(json_bytes({"x": 0.3, "y": 0.5, "zoom": 2}) | st.binary(max_size=60))
def crops_by_hand(base: Path, data: bytes) -> None:
    picture = base / "pictures" / "c.png"
    picture.parent.mkdir(exist_ok=True)
    focal_point.beside(picture).write_bytes(data)
    with told():
        if point := focal_point.read(picture):
            choice, bucket = Pictures(crop="random", crop_jitter=0.5, rotation=30), Bucket(64, 64)
            for cut in cropping.cuts(picture.name, (300, 200), bucket, choice, 0, lambda: None, point):
                assert 0 <= cut.box[0] < cut.box[2] <= 300 and 0 <= cut.box[1] < cut.box[3] <= 200


TENSORS = {
    "__metadata__": {"modelspec.resolution": "512x512", "dreambooth.settings": "{}"},
    "model.diffusion_model.input_blocks.0.0.weight": {"dtype": "F16", "shape": [4, 4, 1, 1], "data_offsets": [0, 32]},
    "cond_stage_model.transformer.text_model.x": {"dtype": "F32", "shape": [2], "data_offsets": [32, 40]},
    "first_stage_model.encoder.x": {"dtype": "BF16", "shape": [], "data_offsets": [40, 42]},
    "lora_unet_x.lora_down.weight": {"dtype": "F16", "shape": [1, 1], "data_offsets": [42, 44]},
}


def safetensors(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + bytes(44)


def pickled() -> bytes:
    """A checkpoint as PyTorch writes it."""
    import torch

    out = io.BytesIO()
    torch.save({"state_dict": {"model.diffusion_model.x": torch.zeros(2, 2), "epoch": 3}}, out)
    return out.getvalue()


def repacked(program: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(PICKLED)) as before, zipfile.ZipFile(out, "w") as after:
        for name in before.namelist():
            after.writestr(name, program if name.endswith("data.pkl") else before.read(name))
    return out.getvalue()


PICKLED = pickled()
with zipfile.ZipFile(io.BytesIO(PICKLED)) as _archive:
    PROGRAM = next(_archive.read(name) for name in _archive.namelist() if name.endswith("data.pkl"))


@target(
    st.tuples(st.just(".safetensors"), json_bytes(TENSORS).map(safetensors) | damaged(safetensors(dumped(TENSORS))))
    | st.tuples(
        st.sampled_from([".ckpt", ".pt", ".bin"]), damaged(PROGRAM).map(repacked) | damaged(PICKLED) | st.binary()
    )
)
def checkpoint_headers(base: Path, found: tuple[str, bytes]) -> None:
    path = base / f"m{found[0]}"
    path.write_bytes(found[1])
    for ask in (models.inspect, checkpoint.read_vae, checkpoint.fingerprint):
        with told():
            api._Json(None).render(ask(path))
    with told():
        project.create(Folders(base / "models"), "created", path)
    shutil.rmtree(base / "models" / "dreambooth" / "created", ignore_errors=True)


INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "x"],
}
SHARDS = {"metadata": {}, "weight_map": {"x": "a.safetensors", "y": "../../a.safetensors"}}
SCHEDULER = {
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "sample_size": 64,
    "cross_attention_dim": 768,
}
PARTS = {
    "model_index.json": INDEX,
    "scheduler/scheduler_config.json": SCHEDULER,
    "unet/config.json": SCHEDULER,
    "unet/diffusion_pytorch_model.safetensors.index.json": SHARDS,
}


@target(st.tuples(*(json_bytes(content) | st.just(dumped(content)) for content in PARTS.values()), st.booleans()))
def diffusers_folders(base: Path, found: tuple[Any, ...]) -> None:
    folder = base / "diffusers"
    for name, data in zip(PARTS, found):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "unet" / "a.safetensors").write_bytes(safetensors(dumped(TENSORS)))
    for ask in (models.inspect, checkpoint.fingerprint):
        with told():
            ask(folder)


MODEL = {
    "version": 1, "source": str(MINIATURE), "origin": {"family": "auto"}, "created": 1.0,
    "about": {"family": "sd1", "resolution": 512, "prediction_type": "epsilon", "zero_terminal_snr": False},
}  # fmt: skip


@target(
    st.tuples(
        json_bytes(MODEL) | st.just(dumped(MODEL)),
        json_bytes(SETTINGS),
        json_bytes({"projects": "p", "loras": "l"}) | st.none(),
        json_bytes({"folder": "x"}),
    )
)
def project_files(base: Path, found: tuple[bytes, bytes, bytes | None, bytes]) -> None:
    models_folder = base / "damaged"
    projects = models_folder / "dreambooth"
    (projects / "star").mkdir(parents=True, exist_ok=True)
    (projects / "star" / "model.json").write_bytes(found[0])
    (projects / "star" / "settings.json").write_bytes(found[1])
    (projects / ".device.json").write_bytes(found[3])
    (projects / "folders.json").unlink(missing_ok=True)
    if found[2]:
        (projects / "folders.json").write_bytes(found[2])
    folders = Folders(models_folder)
    with told():
        device.holder(folders)
    api._Json(None).render(models.listing(folders))
    list(job_list.all_jobs(folders))
    with told():
        opened = project.open_project(folders, "star")
        api._Json(None).render(models.summary(opened))
        assert isinstance(opened.problem, str)
        settings.parse(opened.settings())
        assert opened.resolution > 0
        assert opened.reading


CONFIG = {
    "model_name": "x", "num_train_epochs": 10, "concepts_list": [{"instance_data_dir": "d", "instance_prompt": "p"}],
    "learning_rate": 1e-6, "optimizer": "8bit AdamW", "use_lora": True, "lora_unet_rank": 4, "sample_batch_size": 4,
    "lr_scheduler": "cosine", "save_embedding_every": 25, "resolution": 512, "mixed_precision": "bf16",
}  # fmt: skip
CONCEPTS = [
    {"instance_data_dir": "d", "class_data_dir": "c", "instance_prompt": "[filewords]", "num_class_images": 100}
]
DATASET = {
    "general": {"caption_extension": ".txt", "shuffle_caption": True, "keep_tokens": 1},
    "datasets": [{"resolution": [512, 512], "batch_size": 2, "subsets": [{"image_dir": "d", "num_repeats": 10}]}],
}


@target(
    json_bytes(CONFIG) | json_bytes(CONCEPTS) | nearly(CONCEPTS).map(lambda some: repr(some).encode(errors="replace"))
)
def settings_of_other_trainers(base: Path, data: bytes) -> None:
    path = base / "db_config.json"
    path.write_bytes(data)
    with told():
        import_settings.read(path, lambda: Path(sys.executable))


@target(nearly(DATASET))
def datasets_of_kohya(base: Path, content: Any) -> None:
    with told():
        if isinstance(content, dict) and content.get("datasets"):
            import_settings.kohya_dataset.from_toml(content, import_paths.looker(base))


def picture(form: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (24, 16), "red").save(out, form)
    return out.getvalue()


@target(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]).flatmap(lambda form: damaged(picture(form))))
def pictures_of_concepts(base: Path, data: bytes) -> None:
    path = base / "p.png"
    path.write_bytes(data)
    for ask in (thumbnails.size, lambda file: thumbnails.thumbnail(file, 64)):
        with told():
            ask(path)


@pytest.mark.parametrize("name", list(TARGETS))
@pytest.mark.parametrize(
    "inputs", [pytest.param(FEW, id="some"), pytest.param(MANY, id="many", marks=pytest.mark.fuzz)]
)
def test_no_input_ends_in_a_traceback_or_reaches_outside(base: Path, name: str, inputs: int) -> None:
    strategy, check = TARGETS[name]
    count = 0

    @hypothesis_settings(
        max_examples=inputs,
        deadline=None,
        derandomize=inputs == FEW,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(found: Any) -> None:
        nonlocal count
        count += 1
        with confined(base):
            check(base, found)

    each()
    assert count >= inputs * 0.9, "too few inputs were tried"
    print(f"{name}: {count:,} inputs")


def test_there_are_ten_thousand() -> None:
    assert len(TARGETS) * MANY >= 10_000
    assert json.loads(dumped(SETTINGS)) == SETTINGS
