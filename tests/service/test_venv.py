"""Environments for real: by a Python without `venv`, and where a path is too long."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dreambooth.core.errors import UserError
from dreambooth.service import packages, pip_failures, venv

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-ins are shell scripts and symbolic links")
LICENCE = "deeply/" * 12 + "LICENSE.txt"


def _python_without_venv(place: Path, said: str, *, pip: bool = True) -> Path:
    """This Python, as if nobody had given it a `venv`."""
    shim = place / "python"
    refused = 'echo "No module named pip" >&2; exit 1' if not pip else f'exec {sys.executable} "$@"'
    shim.write_text(
        f'#!/bin/sh\n[ "$1 $2" = "-m venv" ] && {{ echo "{said}" >&2; exit 1; }}\n'
        f'[ "$1 $2" = "-m pip" ] && {{ {refused}; }}\nexec {sys.executable} "$@"\n'
    )
    shim.chmod(0o755)
    return shim


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "environment"
    packages.make(folder, lambda said: None)
    return folder


def _says(folder: Path, code: str) -> str:
    command = [str(venv.python_in(folder)), "-I", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("said", ["python: No module named venv", "ensurepip is not available"])
def test_a_python_without_venv_has_an_environment_too(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(_python_without_venv(tmp_path, said)))
    folder, told = tmp_path / "made", list[str]()
    venv.make(folder, told.append)
    assert told[-1] == "This Python has no venv module; fetching virtualenv"
    assert Path(_says(folder, "import sys; print(sys.prefix)")) == folder
    assert _says(folder, "import pip; print('pip')") == "pip"
    assert _says(folder, "import importlib.util; print(importlib.util.find_spec('virtualenv'))") == "None"


def test_without_a_pip_either_a_person_hears_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shim = _python_without_venv(tmp_path, "No module named venv", pip=False)
    monkeypatch.setattr(sys, "executable", str(shim))
    with pytest.raises(UserError, match=r"has no venv module, and .* \(No module named pip\); install it .*Python\.$"):
        venv.make(tmp_path / "made", lambda said: None)
    assert not (tmp_path / "made").exists()


def test_without_a_network_a_person_is_not_told_to_install_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python of the portable WebUIs for Windows has no venv, and nobody could give it one."""
    monkeypatch.setattr(sys, "executable", str(_python_without_venv(tmp_path, "No module named venv")))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    told = r"^virtualenv \(this Python has no venv module\): the package index cannot be reached; .*HTTPS_PROXY"
    with pytest.raises(pip_failures.NoAnswer, match=told):
        venv.make(tmp_path / "made", lambda said: None)


def test_another_failure_is_told_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(_python_without_venv(tmp_path, "Disk quota exceeded.")))
    with pytest.raises(
        UserError, match=r"made: the environment cannot be made \(Disk quota exceeded\); see .* again\.$"
    ):
        venv.make(tmp_path / "made", lambda said: None)


def test_an_old_environment_that_cannot_be_removed_is_not_built_upon(tmp_path: Path) -> None:
    """As where a program of Windows has one of its files open: the packages of another Python would stay in it."""
    folder = tmp_path / "made"
    held = folder / "lib" / "python3.9" / "site-packages" / "torch" / "held.so"
    held.parent.mkdir(parents=True)
    held.touch()
    (folder / "pyvenv.cfg").touch()
    if not shutil.which("chattr") or subprocess.run(["chattr", "+i", str(held)], capture_output=True).returncode:
        pytest.skip("nothing can be held here")
    try:
        with pytest.raises(
            UserError, match=r"held\.so: this file .* cannot be removed; close .* and run setup again\.$"
        ):
            venv.make(folder, lambda said: None)
    finally:
        subprocess.run(["chattr", "-i", str(held)], check=True)
    venv.make(folder, lambda said: None)
    assert venv.python_in(folder).exists() and not held.exists()


def _wheel(place: Path) -> Path:
    """A package whose licence lies as deep as some of PyTorch's."""
    about = "deep-1.dist-info"
    files = {
        "deep.py": "WORD = 'deep'\n",
        f"{about}/METADATA": "Metadata-Version: 2.4\nName: deep\nVersion: 1\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/licenses/{LICENCE}": "Do as you like.\n",
    }
    files[f"{about}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{about}/RECORD"])
    file = place / "deep-1-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as packed:
        for name, text in files.items():
            packed.writestr(name, text)
    return file


def test_a_path_that_is_too_long_is_reached_by_a_shorter_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too long to be removed by hand afterwards is packed, and goes with its package."""
    folder, place = tmp_path / "environment", tmp_path / "links"
    place.mkdir()
    packages.make(folder, lambda said: None)
    site = Path(_says(folder, "import sysconfig; print(sysconfig.get_path('purelib'))"))
    monkeypatch.setattr(venv, "_MOST_CHARACTERS", len(str(site)) + 60)
    monkeypatch.setattr("tempfile.tempdir", str(place))
    with venv.short(folder) as reached:
        assert reached != folder and reached.resolve() == folder
        assert len(str(reached)) < len(str(place)) + 20
        assert Path(_says(reached, "import sys; print(sys.prefix)")) == reached, "pip must write by the shorter path"
    packages.install(folder, ["--no-index", str(_wheel(tmp_path))], lambda said: None, "It")
    assert _says(folder, "import deep; print(deep.WORD)") == "deep"
    about = site / "deep-1.dist-info"
    assert [file.name for file in (about / "licenses").iterdir()] == ["licenses.zip"]
    with zipfile.ZipFile(about / "licenses" / "licenses.zip") as packed:
        assert packed.read(LICENCE) == b"Do as you like.\n"
    packages.install(folder, ["--no-index", str(_wheel(tmp_path))], lambda said: None, "It")  # a repair
    subprocess.run([str(venv.python_in(folder)), "-m", "pip", "uninstall", "-q", "-y", "deep"], check=True)
    assert not about.exists()
    assert list(place.iterdir()) == []


def test_where_there_is_no_shorter_path_a_person_hears_both_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, link: Path) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(venv, "_MOST_CHARACTERS", 100)
    monkeypatch.setattr(venv, "_link", refuse)
    with (
        pytest.raises(UserError, match=r"too long for Windows, .*shorter path, or .*LongPathsEnabled\)\."),
        venv.short(tmp_path),
    ):
        pass


def _package(folder: Path, name: str) -> Path:
    """A package of one empty file."""
    wheel, about = folder / f"{name}-1-py3-none-any.whl", f"{name}-1.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")
    return wheel


def test_versions_that_somebody_holds_packages_at_are_not_ours(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NVIDIA's containers do, with a file of constraints."""
    held = tmp_path / "constraint.txt"
    held.write_text("held_one==2\n")
    _package(tmp_path, "held_one")
    monkeypatch.setenv("PIP_CONSTRAINT", str(held))
    monkeypatch.setenv("PIP_BUILD_CONSTRAINT", str(held))
    monkeypatch.setenv("PIP_DRY_RUN", "1")
    packages.install(made, ["--no-index", "--find-links", str(tmp_path), "held_one==1"], lambda said: None, "It")
    assert (venv.site_packages_in(made) / "held_one.py").exists()


@pytest.mark.parametrize("key", ["target", "prefix", "root", "user"])
def test_packages_land_in_the_environment_whatever_pip_was_told_elsewhere(
    key: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody's `PIP_TARGET` or pip.conf may name the WebUI's packages. What they say of the index stays."""
    webui, index, conf = tmp_path / "webui", tmp_path / "index", tmp_path / "pip.conf"
    index.mkdir()
    value = "true" if key == "user" else str(webui)
    for number, told in enumerate(("variable", "configuration")):
        name = f"mine_{key}_{told}"
        _package(index, name)
        conf.write_text(f"[global]\nno-index = true\nfind-links = {index}\n" + f"[install]\n{key} = {value}\n" * number)
        with monkeypatch.context() as patched:
            patched.delenv("PIP_FIND_LINKS", raising=False)
            patched.setenv("PIP_CONFIG_FILE", str(conf))
            patched.setenv("PYTHONUSERBASE", str(webui))
            if told == "variable":
                patched.setenv(f"PIP_{key.upper()}", value)
            packages.install(made, [f"{name}==1"], lambda said: None, "It")
        assert (venv.site_packages_in(made) / f"{name}.py").exists()
        assert not webui.exists()
