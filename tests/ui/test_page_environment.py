"""The page's own environment, made for real from small packages in a folder, damaged, and repaired."""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest

from dreambooth.core.errors import UserError
from dreambooth.service import page_environment, venv
from dreambooth.ui import commands
from dreambooth.ui.terminal import Terminal

# The first package that the page's process imports; this one ends that process at once, as if the page was closed.
_GRADIO = b"import sys\nif '--port' in sys.argv: sys.exit(0)\n"


def _wheel(folder: Path, name: str, content: bytes) -> None:
    about = f"{name}-1.0.dist-info"
    files = {
        f"{name}/__init__.py": content,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = io.StringIO()
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, data in files.items():
            wheel.writestr(path, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            record.write(f"{path},sha256={digest},{len(data)}\n")
        wheel.writestr(f"{about}/RECORD", f"{record.getvalue()}{about}/RECORD,,\n")


def _wheel_of_pip(folder: Path) -> None:
    """The pip that is installed here, as a wheel; there is no index to fetch it from."""
    pip = distribution("pip")
    with zipfile.ZipFile(folder / f"pip-{pip.version}-py3-none-any.whl", "w") as wheel:
        for file in pip.files or ():
            if not str(file).startswith("..") and file.suffix != ".pyc" and file.name not in ("INSTALLER", "REQUESTED"):
                wheel.write(pip.locate_file(file), file.as_posix())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the packages of an environment lie that was set up to its end."""
    folder = tmp_path_factory.mktemp("project")
    page, wheels = folder / ".page", folder / "wheels"
    wheels.mkdir()
    _wheel(wheels, "gradio", _GRADIO)
    _wheel(wheels, "other", b"here = 1\n")
    _wheel_of_pip(wheels)
    (folder / "page-lock.txt").write_text("gradio==1.0\nother==1.0\n")
    (folder / "page-tests-lock.txt").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(wheels))
        patch.setenv("DREAMBOOTH_ENGINE_PYTHON", sys.executable)
        for name, path in (
            ("PAGE", page),
            ("STAMP", page / "stamp.json"),
            ("PAGE_LOCK", folder / "page-lock.txt"),
            ("PAGE_TESTS_LOCK", folder / "page-tests-lock.txt"),
            ("PAGE_SETTING_UP", folder / ".page.lock"),
        ):
            patch.setattr(page_environment, name, path)
        page_environment.ensure(lambda said: None)
        yield venv.site_packages_in(page)


def _works() -> bool:
    command = [venv.python_in(page_environment.PAGE), "-c", "import gradio, other; other.here"]
    is_current = page_environment.ensure(pytest.fail) == command[0]  # type: ignore[arg-type]
    return is_current and subprocess.run(command, capture_output=True).returncode == 0


def test_a_page_that_does_not_start_is_repaired_and_started_again(
    site: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _works()
    options = argparse.Namespace(port=7931, data=str(tmp_path / "models"))
    (site / "gradio" / "__init__.py").write_text("")
    for path in (site / "other").glob("*.py"):
        path.unlink()
    assert commands.open_page(options, Terminal()) == {}
    assert _works() and "its environment (.page) is repaired" in capfd.readouterr().err
    module = site / "gradio" / "__init__.py"
    module.write_text("import sys\nsys.exit(2)\n")  # as where the port is taken
    with pytest.raises(UserError, match=r"The page ended with code 2; if the port 7931 is taken"):
        commands.open_page(options, Terminal())
    assert module.read_bytes() != _GRADIO, "nothing was repaired"
    module.write_bytes(_GRADIO)


@pytest.mark.thorough
def test_where_pip_is_damaged_too_it_is_made_anew(site: Path) -> None:
    (site / "pip" / "_internal" / "__init__.py").write_text("raise ImportError")
    (site / "other" / "__init__.py").unlink()
    page_environment.repair(lambda said: None)
    assert _works()


@pytest.mark.thorough
def test_where_its_python_is_gone_it_is_made_anew(site: Path) -> None:
    venv.python_in(page_environment.PAGE).unlink()
    page_environment.ensure(lambda said: None)
    assert _works()


def test_where_there_is_none_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_environment, "PAGE", tmp_path / "nowhere")
    page_environment.repair(pytest.fail)  # type: ignore[arg-type]
    assert not (tmp_path / "nowhere").exists()
