"""What pip says, in sentences: for real where it fails at once."""

from __future__ import annotations

import os
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import DEVELOPMENT_LOCK, LOCK
from dreambooth.service import packages, pip_failures, venv


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment whose Python is the one that is running."""
    monkeypatch.setattr(venv, "python_in", lambda folder: Path(sys.executable))
    return tmp_path


def test_no_way_to_the_index_is_not_a_missing_package(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--isolated", "--retries", "1", "--index-url", "http://127.0.0.1:9/simple", "no-such-package==1"]
    with pytest.raises(
        pip_failures.NoAnswer, match=r"^It: the package index cannot be reached; .*HTTPS_PROXY.*go on\.$"
    ):
        packages.install(ours, arguments, lambda said: None, "It")


def test_what_an_index_does_not_have_is_told_apart(ours: Path) -> None:
    arguments = ["--isolated", "--no-index", "--find-links", str(ours), "no-such-package==1"]
    with pytest.raises(
        pip_failures.NotThere, match=r"No matching distribution found for no-such-package==1\. Run setup"
    ):
        packages.install(ours, arguments, lambda said: None, "It")


class _CutOff(BaseHTTPRequestHandler):
    """An index whose one package never comes whole."""

    def do_GET(self) -> None:
        is_file = self.path.endswith(".whl")
        content = b"PK" * 4000 if is_file else b'<a href="/it-1-py3-none-any.whl">it-1-py3-none-any.whl</a>'
        self.send_response(200)
        self.send_header("Content-Type", "application/zip" if is_file else "text/html")
        self.send_header("Content-Length", str(len(content) * (2 if is_file else 1)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def test_a_download_that_breaks_off_is_told_as_that(ours: Path) -> None:
    """pip tells it by an error that has a name, and ends with a hint."""
    with HTTPServer(("127.0.0.1", 0), _CutOff) as index:
        threading.Thread(target=index.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{index.server_address[1]}"
        arguments = ["--isolated", "--no-cache-dir", "--no-deps", "--resume-retries", "0", "--index-url", address]
        with pytest.raises(
            pip_failures.NoAnswer, match=r"^It: the download broke off; look at the network, and run .*on\.$"
        ):
            packages.install(ours, [*arguments, "it==1"], lambda said: None, "It")
        index.shutdown()


def test_a_full_disk_for_temporary_files_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip downloads there, and there may be room enough where the WebUI lies."""
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second disk")
    monkeypatch.setattr("tempfile.tempdir", str(shm))
    failure = pip_failures.of(["OSError: [Errno 28] No space left on device"], "It", tmp_path)
    assert re.search(rf"GB free in {tmp_path}, .* GB free in /dev/shm\); .* larger disk in TMPDIR, and", str(failure))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            ["ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"],
            "the disk is full",
        ),
        (
            [
                "WARNING: Retrying (Retry(total=4, connect=None)) after connection broken",
                "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            ],
            "the disk is full",
        ),
        (  # of Windows, whose sentence is in the language of the computer
            ["ERROR: Could not install packages due to an OSError: [WinError 112] Es gibt zu wenig Speicher"],
            "the disk is full",
        ),
        (
            [
                "WARNING: Retrying (Retry(total=4, connect=None)) after connection broken",
                "ERROR: Could not install packages due to an OSError: [Errno 122] Disk quota exceeded",
            ],
            "the disk is full",
        ),
        (["ERROR: Cannot uninstall six 1.0."], r"Cannot uninstall six 1\.0\. Run setup"),
        (
            ["Traceback (most recent call last):", "ImportError: nothing to uninstall with"],
            r"nothing to uninstall with\. Run setup",
        ),
        (
            ["ERROR: Could not install packages due to an OSError: [Errno 28] No space left"],
            r"GB free in /.*; make room",
        ),
        (
            ["ERROR: Could not install packages due to an OSError: [WinError 5] Zugriff verweigert: 'C:\\x.pyd'"],
            r"Zugriff verweigert: 'C:\\x\.pyd'; see that .* no other program, such as a virus scanner, .* go on\.$",
        ),
        (  # as the console of Windows has it, which lacks the cross that stands before the second line elsewhere
            ["error: resolution-too-deep", "", "Dependency resolution exceeded maximum depth", "hint: Try less."],
            r"could not be installed: Dependency resolution exceeded maximum depth\. Run setup",
        ),
        ([], r"no reason given\. Run setup"),
    ],
)
def test_other_failures(said: list[str], told: str, tmp_path: Path) -> None:
    failure = pip_failures.of(said, "It", tmp_path)
    kinds = (pip_failures.DiskIsFull, pip_failures.Damaged)
    assert [isinstance(failure, kind) for kind in kinds] == ["disk is full" in str(failure), "uninstall" in told]
    with pytest.raises(UserError, match=told):
        raise failure


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Collecting torch==2.13.0\n", "PyTorch: torch 2.13.0"),
        ("Progress 52428800 of 900000000\n", "PyTorch: 52 of 900 MB"),
        ("Progress 1 of 20\n", ""),
        ("  Using cached x.whl\n", ""),
    ],
)
def test_progress(line: str, shown: str) -> None:
    assert packages.progress_text(line, "PyTorch") == shown


def test_the_engine_runs_what_the_lock_says() -> None:
    for line in packages.requirements(LOCK):
        name, wanted = line.split("==")
        assert version(name).split("+")[0] == wanted


@pytest.mark.parametrize("lock", [LOCK, DEVELOPMENT_LOCK], ids=lambda path: path.name)
def test_every_version_is_exact(lock: Path) -> None:
    lines = list(packages.requirements(lock))
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][^\s;,*]*", line) for line in lines)
    assert len({line.split("==")[0].lower() for line in lines}) == len(lines)


def test_an_environment_that_works_is_kept(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(venv, "make", lambda *_: pytest.fail("it is made anew"))
    monkeypatch.setattr(packages, "install", lambda *given: asked.append(given))
    assert packages.make(ours, lambda said: None) is False
    assert asked[0][1] == [packages.PIP]


@pytest.mark.skipif(os.name == "nt", reason="Windows starts no scripts this way")
def test_one_whose_pip_is_damaged_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    monkeypatch.setattr(venv, "make", lambda folder, progress: made.append(folder))
    monkeypatch.setattr(packages, "install", lambda *given: None)
    own = venv.python_in(tmp_path)
    own.parent.mkdir()
    own.write_text('#!/bin/sh\n[ "$1" = -c ]\n')  # `import pip` works, and what loads more of it does not
    own.chmod(0o755)
    assert packages.make(tmp_path, lambda said: None) is True and made == [tmp_path]
