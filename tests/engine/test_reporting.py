"""TensorBoard's files, and the webhook: what it is told, where it may lie, and that nobody sees its address."""

from __future__ import annotations

import http.server
import json
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from dreambooth.core import project, reference, schema, webhook
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import Settings, parse
from dreambooth.engine import worker
from dreambooth.engine.run import tensorboard
from dreambooth.service import launcher
from tests.engine import tiny
from tests.receiver import HERE
from tests.receiver import server as server

SECRET = "https://hooks.example.com/services/T0/k3y-that-nobody-sees"
SHORT: dict[str, Any] = {
    "concepts.0.instance_data_dir": str(SUBJECT_PICTURES),
    "concepts.0.instance_prompt": "a photo of sks star",
    "intervals.num_train_epochs": 1,
    "batching.train_batch_size": 5,
    "previews.count": 0,
}


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("reporting")
    source = tiny.write_original(folder / "tiny.safetensors", "sd1")
    return project.create(Folders(folder / "models"), "star", source)


def new_run(star: Project, **changes: Any) -> Job:
    return launcher.new_run(Folders(star.folder.parents[1]), star, parse({**SHORT, **changes}))


def records(path: Path) -> list[bytes]:
    """The events of a file, their checksums compared."""
    data, found = path.read_bytes(), []
    while data:
        (length,), (check,) = struct.unpack("<Q", data[:8]), struct.unpack("<I", data[8:12])
        assert check == tensorboard._masked(tensorboard.crc32c(data[:8]))
        event, data = data[12 : 12 + length], data[12 + length :]
        assert struct.unpack("<I", data[:4])[0] == tensorboard._masked(tensorboard.crc32c(event))
        found.append(event)
        data = data[4:]
    return found


def test_the_checksum_is_the_standards() -> None:
    """RFC 3720, appendix B.4."""
    assert tensorboard.crc32c(bytes(32)) == 0x8A9136AA
    assert tensorboard.crc32c(b"\xff" * 32) == 0x62A8AB43
    assert tensorboard.crc32c(bytes(range(32))) == 0x46DD794E


def test_a_run_writes_what_tensorboard_reads(star: Project) -> None:
    job = new_run(star, **{"reporting.tensorboard": True})
    assert worker.run(job) == "done"
    first, *events = records(next((job.folder / "tensorboard").iterdir()))
    assert first.endswith(b"brain.Event:2")
    told = [event for event in job.events()[0] if event["event"] == "step"]
    assert len(events) == len(told) > 0
    name = b"loss/loss"
    at = events[-1].index(name) + len(name)
    assert events[-1][at] == 0x15  # field 2, a float
    assert struct.unpack("<f", events[-1][at + 1 : at + 5])[0] == pytest.approx(told[-1]["loss"])
    assert events[-1][9:11] == bytes([0x10, told[-1]["step"]])
    assert b"learning rate/unet" in events[-1]
    quiet = new_run(star)
    assert worker.run(quiet) == "done"
    assert not (quiet.folder / "tensorboard").exists()


def test_a_run_goes_on_without_curves_that_cannot_be_begun(star: Project) -> None:
    job = new_run(star, **{"reporting.tensorboard": True})
    (job.folder / "tensorboard").touch()
    assert worker.run(job) == "done"
    assert [warning.partition(": ")[2] for warning in job.warnings()] == [
        "the curves cannot be written (File exists); the run goes on without."
    ]


def test_tensorboard_itself_reads_it(tmp_path: Path) -> None:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    file = tensorboard.EventFile(tmp_path)
    file.add(300, {"loss/loss": 0.25})
    version, point = list(loader.EventFileLoader(str(file.path)).Load())
    assert version.file_version == "brain.Event:2"
    assert (point.step, point.summary.value[0].tag) == (300, "loss/loss")


def address(server: http.server.HTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/hook?a=1"


def test_the_webhook_is_told(server: Any) -> None:
    assert webhook.post(address(server), "done", HERE) == ""
    assert [(one["path"], one["content"], one["text"]) for one in server.RequestHandlerClass.got] == [
        ("/hook?a=1", "done", "done")
    ]


def test_a_redirection_is_not_followed(server: Any) -> None:
    server.RequestHandlerClass.answer = 307
    assert webhook.post(address(server), "done", HERE) == "it answered 307"
    assert len(server.RequestHandlerClass.got) == 1


def test_nothing_is_sent_to_this_machine_or_its_network(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By number, by a name that leads there, and in every spelling of it."""
    port = server.server_address[1]
    assert webhook.post(address(server), "x") == "it is no https address"
    assert webhook.post(f"https://127.0.0.1:{port}/", "x") == "it leads to this machine or its own network"
    assert webhook.post(f"https://[::ffff:127.0.0.1]:{port}/", "x") == "it leads to this machine or its own network"
    for private in ("10.1.2.3", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "::1", "fe80::1", "fd00::1"):
        family = socket.AF_INET6 if ":" in private else socket.AF_INET
        place = (family, socket.SOCK_STREAM, 6, "", (private, 443))
        public = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 443))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, found=[public, place], **__: found)
        assert webhook.post(SECRET, "x") == "it leads to this machine or its own network", private
    assert not server.RequestHandlerClass.got


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/x",
        "https://127.0.0.1/x",
        "https://[::1]/x",
        "https://localhost/x",
        "https://printer.local/x",
        "https://intranet/x",
        "https://user:word@hooks.example.com/x",
        "https://hooks.example.com:8443/x",
        "https://[broken/x",
        "hooks.example.com/x",
    ],
)
def test_an_address_that_cannot_be_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(UserError) as refused:
        parse({"reporting.webhook_url": url})
    assert refused.value.problems[0].startswith("reporting.webhook_url: it ")
    assert url not in str(refused.value)


@pytest.mark.parametrize("fails", [False, True])
def test_the_end_is_told_and_the_address_shown_to_nobody(
    star: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], fails: bool
) -> None:
    told: list[str] = []
    monkeypatch.setattr(
        webhook, "post", lambda url, text: told.append(text) or ("its host is not known" if fails else "")
    )
    job = new_run(star, **{"reporting.webhook_url": SECRET, "reporting.tensorboard": True})
    assert worker.run(job) == "done"
    assert told == [f"DreamBooth: {job.name} is done at step 1 of 1."]
    warnings = [event["text"] for event in job.events()[0] if event["event"] == "warning"]
    assert bool(warnings) == fails
    written = next(Path(event["path"]) for event in job.events()[0] if event["event"] == "saved")
    for path in [written, *(p for p in job.folder.rglob("*") if p.is_file() and p.name != "settings.json")]:
        assert b"k3y-that-nobody-sees" not in path.read_bytes(), path
    with safe_open(written, "pt") as file:
        inside = json.loads(file.metadata()["dreambooth.settings"])
    assert "reporting.webhook_url" not in inside
    assert "reporting.tensorboard" in inside
    assert "k3y" not in "".join(capfd.readouterr())


def test_a_failure_is_told_too(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(webhook, "post", lambda url, text: told.append(text) or "")
    job = new_run(star, **{"reporting.webhook_url": SECRET, "concepts.0.instance_data_dir": "/nowhere"})
    with pytest.raises(UserError):
        worker.run(job)
    assert told == [f"DreamBooth: {job.name} is failed."]


def test_a_secret_is_marked_for_the_page_and_the_api() -> None:
    entry = reference.json_schema(Settings)["properties"]["reporting.webhook_url"]
    assert entry["writeOnly"] is True
    flat = schema.to_flat(parse({"reporting.webhook_url": SECRET}))
    assert SECRET not in json.dumps(schema.shareable(Settings, flat))
