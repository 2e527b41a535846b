"""Models of the hub, downloaded for real from a small server on this machine that answers as the hub does."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from dreambooth.core import job_list
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.job_folder import Job
from dreambooth.core.models.hub import HubModel, needed_files, parse
from dreambooth.core.project import Folders
from dreambooth.engine.checkpoints.source import open_source
from dreambooth.host.standalone import Standalone
from dreambooth.service import api, launcher, models
from tests.conftest import ROOT
from tests.engine import tiny, tiny_captioner

COMMIT = "a" * 40


class Hub(http.server.ThreadingHTTPServer):
    """Serves the models in a folder; `private/...` only with the right token."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.root = root
        self.asked: list[str] = []


class Answers(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        words = path.strip("/").split("/")
        repository = "/".join(words[2:4] if words[0] == "api" else words[:2])
        if repository.startswith("private/") and self.headers.get("authorization") != "Bearer secret":
            return self.answer(401, {"X-Error-Code": "GatedRepo"})
        folder = self.server.root / repository
        if not folder.is_dir():
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        if words[0] == "api":
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            siblings = [{"rfilename": f.relative_to(folder).as_posix(), "size": f.stat().st_size} for f in files]
            said = json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode()
            return self.answer(200, {"Content-Type": "application/json"}, said, body)
        file = folder / "/".join(words[4:])
        if not file.is_file():
            return self.answer(404, {"X-Error-Code": "EntryNotFound"})
        marks = {"X-Repo-Commit": COMMIT, "ETag": f'"{file.stat().st_size}-{file.name}"'}
        return self.answer(200, marks, file.read_bytes(), body)

    def answer(self, code: int, headers: dict[str, str], data: bytes = b"", body: bool = True) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    tiny.write_folder(root / "someone" / "tiny-sd2", "sd2-v")
    (root / "someone" / "tiny-sd2" / "pictures.bin").write_bytes(b"not needed" * 1000)
    single = root / "private" / "one-file"
    single.mkdir(parents=True)
    (single / "model.safetensors").write_bytes(MINIATURE.read_bytes())
    (single / "README.md").write_text("words")
    server = Hub(root)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def create(
    hub: Hub, tmp_path: Path, source: str, token: str = "", *, name: str = "it", revision: str = ""
) -> subprocess.CompletedProcess[str]:
    command = ["create", name, "--source", source, *(["--revision", revision] if revision else [])]
    return dreambooth(hub, tmp_path, *command, token=token)


def dreambooth(hub: Hub, tmp_path: Path, *command: str, token: str = "") -> subprocess.CompletedProcess[str]:
    """A command that is told of the hub."""
    variables = {
        **os.environ,
        "DREAMBOOTH_ENGINE_PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": token,
    }
    whole = [sys.executable, "-m", "dreambooth", *command, "--data", str(tmp_path / "models"), "--json"]
    return subprocess.run(whole, capture_output=True, text=True, cwd=ROOT, env=variables, timeout=300)


def test_a_diffusers_model_is_downloaded_without_what_nobody_needs(hub: Hub, tmp_path: Path) -> None:
    said = create(hub, tmp_path, "someone/tiny-sd2")
    assert said.returncode == 0, said.stderr
    about = json.loads(said.stdout)["about"]
    assert (about["family"], about["prediction_type"]) == ("sd2", "v_prediction")
    here = Path(json.loads(said.stdout)["source"])
    assert open_source(here).tensors.keys() == open_source(hub.root / "someone" / "tiny-sd2").tensors.keys()
    assert not (here / "pictures.bin").exists()
    assert not list((here.parent / ".errands").iterdir())


def test_one_file_behind_a_login(hub: Hub, tmp_path: Path) -> None:
    said = create(hub, tmp_path, "private/one-file")
    assert said.returncode == 2
    assert "behind a licence" in said.stderr and "HF_TOKEN" in said.stderr
    said = create(hub, tmp_path, "https://huggingface.co/private/one-file/blob/main/model.safetensors", token="secret")
    assert said.returncode == 0, said.stderr
    assert Path(json.loads(said.stdout)["source"]).read_bytes() == MINIATURE.read_bytes()
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size < 1_000_000]
    assert not [path for path in written if b"secret" in path.read_bytes()]


def test_a_revision_is_asked_for_and_lies_beside_the_newest(hub: Hub, tmp_path: Path) -> None:
    first = create(hub, tmp_path, "someone/tiny-sd2")
    other = create(hub, tmp_path, "someone/tiny-sd2", name="other", revision="refs/pr/1")
    places = [Path(json.loads(said.stdout)["source"]) for said in (first, other)]
    assert [place.name for place in places] == ["someone--tiny-sd2", "someone--tiny-sd2@refs--pr--1"]
    assert any("/revision/refs%2Fpr%2F1" in path for path in hub.asked)
    assert open_source(places[0]).tensors.keys() == open_source(places[1]).tensors.keys()


@pytest.mark.parametrize(
    ("source", "revision", "told"),
    [
        ("a/b", "../../x", "Revision: '../../x' can be no branch, tag or commit"),
        ("a/b", "a b", "Revision: 'a b' can be no branch"),
        (str(MINIATURE), "v2", "is no model of the hub, which alone has any; leave it empty."),
    ],
)
def test_what_is_no_revision_is_refused(tmp_path: Path, source: str, revision: str, told: str) -> None:
    with pytest.raises(UserError) as refused:
        models.hub_model(Folders(tmp_path), "star", source, revision, label="Revision")
    assert told in str(refused.value)
    assert models.hub_model(Folders(tmp_path), "star", "a/b", " v2 ") == HubModel("a/b", "", "v2")


def test_a_captioning_model_is_fetched_once_and_describes_pictures(hub: Hub, tmp_path: Path) -> None:
    model = tiny_captioner.write(hub.root / "someone" / "tiny-blip")
    (model / "pytorch_model.bin").write_bytes(b"the same weights again" * 1000)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    tiny_captioner.picture("red", pictures / "1.png")
    assert create(hub, tmp_path, str(MINIATURE)).returncode == 0
    chosen = ["--concepts.0.instance_data_dir", str(pictures), "--concepts.0.instance_prompt", "[filewords]"]
    assert dreambooth(hub, tmp_path, "set", "it", *chosen).returncode == 0
    said = dreambooth(hub, tmp_path, "caption", "it", "--with", "someone/tiny-blip")
    assert said.returncode == 0, said.stderr
    assert (pictures / "1.txt").read_text() == "a red star\n"
    fetched = next((tmp_path / "models").rglob("someone--tiny-blip"))
    assert (fetched / "model.safetensors").exists() and not (fetched / "pytorch_model.bin").exists()
    before = len(hub.asked)
    said = dreambooth(hub, tmp_path, "caption", "it", "--with", "someone/tiny-blip", "--over")
    assert json.loads(said.stdout)["captions"][0]["caption"] == "a red star"
    assert len(hub.asked) == before
    said = dreambooth(hub, tmp_path, "caption", "it", "--with", "someone/nothing", "--over")
    assert said.returncode == 2 and "no such model on the Hugging Face hub" in said.stderr
    assert "Traceback" not in said.stderr


def test_what_is_not_there_is_said(hub: Hub, tmp_path: Path) -> None:
    said = create(hub, tmp_path, "someone/nothing")
    assert said.returncode == 2
    assert "no such file or folder here, and no such model on the Hugging Face hub" in said.stderr
    assert "Traceback" not in said.stderr


def test_a_folder_that_cannot_be_made_is_named(hub: Hub, tmp_path: Path) -> None:
    out = Folders(tmp_path / "models").downloads / HubModel("someone/tiny-sd2", "", "").folder_name
    out.parent.mkdir(parents=True)
    out.touch()
    said = create(hub, tmp_path, "someone/tiny-sd2")
    assert said.returncode == 2
    assert f"{out}: the folder cannot be made (File exists)" in said.stderr


def test_a_download_that_cannot_be_written_is_no_fault_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    out = Folders(tmp_path / "models").downloads / HubModel("someone/tiny-sd2", "", "").folder_name
    out.mkdir(parents=True)
    (out / ".cache").touch()  # where the hub's library writes what is not whole yet
    said = create(hub, tmp_path, "someone/tiny-sd2")
    assert said.returncode == 2
    assert f"{out}/.cache/huggingface: the download cannot be written (Not a directory); mend that" in said.stderr


def test_the_network_is_asked_for_nothing_else(hub: Hub, tmp_path: Path) -> None:
    before = len(hub.asked)
    assert create(hub, tmp_path, "nowhere.safetensors").returncode == 2
    assert create(hub, tmp_path, "./someone/tiny-sd2").returncode == 2
    assert create(hub, tmp_path, str(MINIATURE)).returncode == 0
    assert len(hub.asked) == before


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("someone/model", HubModel("someone/model")),
        ("someone/model.v2", HubModel("someone/model.v2")),
        ("https://huggingface.co/someone/model", HubModel("someone/model")),
        ("https://huggingface.co/someone/model/tree/main", HubModel("someone/model")),
        ("someone/model/sub/x.safetensors", HubModel("someone/model", "sub/x.safetensors")),
        ("https://huggingface.co/a/b/resolve/main/x.ckpt", HubModel("a/b", "x.ckpt")),
        ("https://huggingface.co/a/b/blob/v2/x.ckpt", HubModel("a/b", "x.ckpt", "v2")),
        ("https://huggingface.co/someone/model/tree/fp16", HubModel("someone/model", "", "fp16")),
        ("https://huggingface.co/a/b/resolve/main/x.safetensors?download=true", HubModel("a/b", "x.safetensors")),
        ("https://huggingface.co/a/b/blob/main/my%20model.ckpt", HubModel("a/b", "my model.ckpt")),
        ("https://huggingface.co/a/b?library=diffusers", HubModel("a/b")),
        ("https://huggingface.co/a/b#usage", HubModel("a/b")),
        ("http://huggingface.co/a/b", HubModel("a/b")),
        ("https://hf.co/a/b", HubModel("a/b")),
        ("https://huggingface.co/a/b/resolve/main/%2e%2e/x.ckpt", None),
        ("a/b?download=true", None),
        ("models/x.safetensors", None),
        ("/absolute/path", None),
        ("./a/b", None),
        ("../a/b", None),
        ("a/../b", None),
        ("~/a/b", None),
        ("alone", None),
        ("https://elsewhere.example/a/b", None),
        ("C:\\models\\x", None),
        ("a/b/c/d", None),
    ],
)
def test_what_a_person_means(text: str, meant: HubModel | None) -> None:
    assert parse(text) == meant


def test_the_best_weights_of_each_part_are_chosen() -> None:
    files = [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.safetensors.index.json",
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors",
        "text_encoder/flax_model.msgpack",
        "safety_checker/model.safetensors",
        "v1-5-pruned.ckpt",
    ]
    weights = [name for name in needed_files(HubModel("a/b"), files) if not name.endswith("config.json")]
    assert weights == [
        "model_index.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors",
        "text_encoder/model.safetensors.index.json",
    ]


def test_a_choice_between_files_is_left_to_the_person() -> None:
    with pytest.raises(UserError, match=r"name one of its files, as a/b/x\.ckpt"):
        needed_files(HubModel("a/b"), ["y.safetensors", "x.ckpt", "README.md"])
    with pytest.raises(UserError, match="no model file"):
        needed_files(HubModel("a/b"), ["README.md"])
    with pytest.raises(UserError, match=r"no file z\.ckpt"):
        needed_files(HubModel("a/b", "z.ckpt"), ["x.ckpt"])


_BEGIN = """
import sys
from pathlib import Path
from dreambooth.core.models.hub import HubModel
from dreambooth.core.project import Folders
from dreambooth.service import downloads
print(int(downloads.begin(Folders(Path(sys.argv[1])), HubModel("someone/slow")).folder.name))
"""


def test_the_same_model_is_downloaded_once_at_a_time_whoever_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = FastAPI()
    app.include_router(api.router(Standalone(str(tmp_path / "models"))))
    client = TestClient(app, base_url="http://here")

    def ask(revision: str) -> int:
        wanted = {"name": "star", "source": "someone/slow", "revision": revision}
        answer = client.post("/dreambooth/downloads", json=wanted)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["number"])

    folders = Folders(tmp_path / "models")
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(4) as at_once:  # it answers nobody
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("DREAMBOOTH_ENGINE_PYTHON", sys.executable)
        command = [sys.executable, "-c", _BEGIN, str(folders.models)]
        programs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(3)]
        try:
            assert {program.communicate(timeout=60)[0].strip() for program in programs} == {"1"}
            assert set(at_once.map(ask, [""] * 4)) == {1}
            assert ask("v2") == 2, "another revision has a folder of its own"
        finally:
            for job in job_list.downloads(folders):
                _end(job)
    assert ask("") == 3, "one whose engine is gone is begun anew"
    _end(job_list.downloads(folders)[-1])


def _end(job: Job) -> None:
    until = time.monotonic() + 60
    while job.status() not in ("lost", "failed"):
        assert time.monotonic() < until, job.events()
        launcher.kill(job)
        time.sleep(0.1)


def test_an_address_elsewhere_is_said_to_be_none_of_the_hub(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x.safetensors is no address of a model on huggingface.co"):
        models.hub_model(Folders(tmp_path), "star", " https://example.org/x.safetensors")
