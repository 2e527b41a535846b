from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dreambooth.core import device
from dreambooth.core.errors import UserError
from dreambooth.core.files import lock
from dreambooth.core.install_paths import DEVELOPMENT_LOCK, LOCK
from dreambooth.service import environment, installed_files, packages, pip_failures, self_check, torch_build


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment folder that is complete and current."""
    monkeypatch.delenv(environment.VARIABLE, raising=False)
    monkeypatch.setattr(environment, "ENGINE", tmp_path)
    monkeypatch.setattr(environment, "STAMP", tmp_path / "stamp.json")
    environment.python().parent.mkdir()
    environment.python().touch()
    stamp = {"engine": environment.digest(LOCK), "development": environment.digest(DEVELOPMENT_LOCK)}
    (tmp_path / "stamp.json").write_text(json.dumps(stamp))
    return tmp_path


def test_a_current_environment_is_seen_at_once(fresh: Path) -> None:
    since = time.monotonic()
    assert environment.is_current(development=True)
    assert environment.ensure(pytest.fail) == environment.python()
    assert time.monotonic() - since < 0.2


@pytest.mark.parametrize("wanted", ["ensure", "set_up"])
def test_what_another_has_set_up_meanwhile_is_not_set_up_once_more(
    wanted: str, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have a training by now, which a second set-up would wait for."""
    monkeypatch.setattr(environment, "SETTING_UP", fresh / "setting-up")
    monkeypatch.setattr(packages, "make", lambda *_: pytest.fail("it is set up once more"))
    monkeypatch.setattr(environment, "check", lambda: {"torch": "2"})
    others, stamp = lock.acquire(fresh / "setting-up"), (fresh / "stamp.json").rename(fresh / "made.json")
    assert others

    def end(said: str) -> None:
        if stamp.exists():
            stamp.rename(fresh / "stamp.json")
            others.close()

    assert getattr(environment, wanted)(end) == (environment.python() if wanted == "ensure" else {"torch": "2"})
    assert environment.is_current()


def test_a_changed_lock_makes_it_stale(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other-lock.txt"
    other.write_text(LOCK.read_text() + "six==1.17.0\n")
    monkeypatch.setattr(environment, "LOCK", other)
    assert not environment.is_current()


@pytest.mark.parametrize("damage", ["no stamp", "half a stamp", "no python"])
def test_an_interrupted_set_up_is_seen(fresh: Path, damage: str) -> None:
    if damage == "no stamp":
        (fresh / "stamp.json").unlink()
    elif damage == "half a stamp":
        (fresh / "stamp.json").write_text('{"engine": ')
    else:
        environment.python().unlink()
    assert not environment.is_current()


def test_another_engine_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(environment.VARIABLE, str(tmp_path / "no-python"))
    with pytest.raises(UserError, match=environment.VARIABLE):
        environment.python()
    (tmp_path / "python").touch()
    monkeypatch.setenv(environment.VARIABLE, str(tmp_path / "python"))
    assert environment.python() == tmp_path / "python"


@pytest.mark.skipif(os.name == "nt", reason="Windows starts no scripts this way")
def test_an_engine_that_does_not_work_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'ImportError: no torch' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv(environment.VARIABLE, str(broken))
    told = (
        rf"\({broken}\) does not work: ImportError: no torch\. Mend its packages, or have {environment.VARIABLE} name"
    )
    monkeypatch.setattr(packages, "make", lambda *_: pytest.fail("an environment is made that nobody would use"))
    for look in (environment.check, lambda: environment.set_up(lambda said: None)):
        with pytest.raises(UserError, match=told):
            look()
    with pytest.raises(UserError, match=r"no torch\. Run setup again \(on the page: Set Up\)\.$"):
        self_check.run(broken, {}, self_check.SET_UP_AGAIN)
    broken.write_bytes(b"\x7fELF of another machine")
    with pytest.raises(UserError, match=r"no Python that can be started"):
        environment.check()


def test_of_a_cards_error_the_line_is_told_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said = (
        "Traceback (most recent call last):\n"
        "torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device\n"
        "For debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
        "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n\n"
    )
    monkeypatch.setattr(self_check, "_output_of", lambda command, variables: ("", said, 1))
    with pytest.raises(
        self_check.CardFails, match=r"does not work: torch\.AcceleratorError: CUDA error: no kernel image .*device\."
    ):
        environment.check()


@pytest.mark.parametrize(
    "said",
    [
        "OSError: [WinError 1455] Die Auslagerungsdatei ist zu klein. Error loading cudnn64_9.dll or",
        "RuntimeError: data. DefaultCPUAllocator: not enough memory: you tried to allocate 26214400 bytes.",
        "MemoryError: ",
    ],
)
def test_for_too_little_memory_no_package_is_fetched_anew(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "_output_of", lambda command, variables: ("", f"Traceback\n{said}\n", 1))
    with pytest.raises(self_check.CardFails, match="too little memory: close other programs"):
        environment.check()


@pytest.mark.parametrize(
    "said",
    [
        'OSError: [WinError 1114] Eine DLL-Initialisierungsroutine ist fehlgeschlagen. Error loading "c10.dll".',
        "ImportError: DLL load failed while importing _safetensors_rust: Das angegebene Modul wurde nicht gefunden.",
    ],
)
def test_for_a_missing_runtime_of_windows_a_person_hears_what_to_install(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_check, "_output_of", lambda command, variables: ("", f"Traceback\n{said}\n", 1))
    told = r"does not work: \w+Error: .*[^.]\. Install Microsoft's newest Visual C\+\+ Redistributable .*\. Run setup"
    with pytest.raises(self_check.DoesNotWork, match=told):
        environment.check()


@pytest.mark.skipif(os.name == "nt", reason="Windows starts no scripts this way")
def test_a_driver_that_does_not_answer_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hung = tmp_path / "python"
    hung.write_text("#!/bin/sh\nexec sleep 60\n")
    hung.chmod(0o755)
    monkeypatch.setenv(environment.VARIABLE, str(hung))
    monkeypatch.setattr(self_check, "SECONDS", 1)
    with pytest.raises(self_check.CardFails, match=r"has not ended in .* minutes: .*restart the computer, then run"):
        environment.check()


def test_engine_processes_leave_the_webui_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(environment.VARIABLE, raising=False)
    monkeypatch.setenv("COMMANDLINE_ARGS", "--medvram")
    monkeypatch.setenv("PYTHONPATH", "/webui")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:cudaMallocAsync")
    variables = environment.engine_variables()
    assert "PYTORCH_CUDA_ALLOC_CONF" not in variables
    assert "COMMANDLINE_ARGS" not in variables
    assert "/webui" not in variables["PYTHONPATH"]
    assert variables["HF_HUB_OFFLINE"] == "1"


def test_another_engines_python_keeps_its_path_behind_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environment.VARIABLE, "/opt/torch/bin/python")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/opt/more", "/opt/torch"]))
    found = environment.engine_variables()["PYTHONPATH"].split(os.pathsep)
    assert found == [str(environment.PROJECT), "/opt/more", "/opt/torch"]
    monkeypatch.delenv("PYTHONPATH")
    assert environment.engine_variables()["PYTHONPATH"] == str(environment.PROJECT)


def test_a_mac_without_pytorch_is_refused_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch, fresh: Path
) -> None:
    intel = torch_build.Machine("Darwin", processor="x86_64", release="15.2")
    monkeypatch.setattr(torch_build, "look", lambda: intel)
    monkeypatch.setattr(packages, "make", lambda *_: pytest.fail("an environment is made"))
    with pytest.raises(UserError, match=r"an Intel Mac cannot train\. DREAMBOOTH_ENGINE_PYTHON can name"):
        environment.set_up(lambda said: None)


def test_an_engine_works_on_the_gpu_that_the_webui_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv(device.GPU_VARIABLE, raising=False)
    assert "CUDA_VISIBLE_DEVICES" not in environment.engine_variables()
    monkeypatch.setenv(device.GPU_VARIABLE, "1")
    assert environment.engine_variables()["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert environment.engine_variables()["CUDA_VISIBLE_DEVICES"] == "3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # as Forge does for its --gpu-device-id 1
    assert environment.engine_variables()["CUDA_VISIBLE_DEVICES"] == "1"


class _Index:
    """Which builds of PyTorch there are, as pip would find them; what is installed is noted."""

    def __init__(self, *there: str, silent: bool = False) -> None:
        self.there, self.silent, self.asked = there, silent, list[list[str]]()

    def install(self, folder: Path, arguments: list[str], progress: packages.Progress, what: str) -> None:
        self.asked.append(arguments)
        if self.silent and "--index-url" in arguments:
            raise pip_failures.NoAnswer("The index cannot be reached.")
        if what.removeprefix("PyTorch (").removesuffix(")") not in self.there and not self.silent:
            raise pip_failures.NotThere("There is none.")


RTX_5090 = torch_build.Machine("Windows", "572.16", capability=(12, 0))


@pytest.mark.parametrize(
    ("machine", "index", "tried"),
    [
        (torch_build.Machine("Windows", "581.0", capability=(8, 6)), _Index("cu130"), ["cu130"]),
        (torch_build.Machine("Windows", "560.1", capability=(8, 6)), _Index("cu126"), ["cu129", "cu126"]),
        (torch_build.Machine("Linux", "581.0", capability=(8, 6)), _Index(silent=True), ["cu130", "default"]),
    ],
)
def test_the_next_build_is_tried_where_there_is_none(
    machine: torch_build.Machine, index: _Index, tried: list[str], fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "install", index.install)
    environment._install_torch(machine, lambda said: None)
    named = [arguments[1].rpartition("/")[2] if "--index-url" in arguments else "default" for arguments in index.asked]
    assert named == tried


def test_a_card_is_not_given_a_build_without_it_nor_for_a_network_that_is_down(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = _Index("cu126")
    monkeypatch.setattr(packages, "install", index.install)
    with pytest.raises(UserError, match=r"There is none\. Update the NVIDIA driver to 580 or newer"):
        environment._install_torch(RTX_5090, lambda said: None)
    monkeypatch.setattr(packages, "install", _Index(silent=True).install)
    with pytest.raises(pip_failures.NoAnswer):
        environment._install_torch(RTX_5090, lambda said: None)


@pytest.mark.parametrize(
    ("system", "version", "ending"),
    [("Linux", "2.13.0+cpu", "+cu130"), ("Windows", "2.13.0", "+cu130"), ("Linux", "2.13.0", "torch==2.13.0")],
)
def test_another_build_takes_the_place_of_the_one_that_is_there(
    system: str, version: str, ending: str, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To pip, PyTorch 2.13.0 for the CPU is PyTorch 2.13.0 already. The default index's, which says no build, is for
    CUDA 13 on Linux and for the CPU on Windows."""
    index = _Index("cu130")
    monkeypatch.setattr(packages, "install", index.install)
    machine = torch_build.Machine(system, "581.0", capability=(8, 6))
    (fresh / "lib" / "python3.10" / "site-packages" / f"torch-{version}.dist-info").mkdir(parents=True)
    environment._install_torch(machine, lambda said: None)
    assert index.asked[0][-1].startswith("torch==") and index.asked[0][-1].endswith(ending)


def test_another_driver_has_the_environment_looked_at_again(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = json.loads((fresh / "stamp.json").read_text())
    monkeypatch.setattr(torch_build, "look", lambda: torch_build.Machine("Linux", "470.1"))
    assert environment.is_for_this_machine(), "made before that was noted"
    (fresh / "stamp.json").write_text(json.dumps({**stamp, "builds": ["cpu", torch_build.DEFAULT.name]}))
    assert environment.is_for_this_machine()
    monkeypatch.setattr(torch_build, "look", lambda: torch_build.Machine("Linux", "580.1"))
    assert not environment.is_for_this_machine()
    assert environment.is_current(), "it works as it is, and nothing is fetched unasked"


def test_an_amd_gpu_that_pytorch_cannot_use_leaves_the_cpu(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = _Index(*torch_build._ROCM, "cpu")
    monkeypatch.setattr(packages, "install", index.install)
    checked: list[Any] = [self_check.CardFails("The engine's environment does not work."), {"device": "cpu"}]

    def check() -> dict[str, Any]:
        found = checked.pop(0)
        if isinstance(found, UserError):
            raise found
        return dict(found)

    monkeypatch.setattr(environment, "check", check)
    report, note = environment._with_torch(torch_build.Machine("Linux", has_amd=True), lambda said: None)
    assert report == {"device": "cpu"} and "does not work on this AMD GPU" in note
    assert index.asked[-1][1].endswith("/cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch has it for Linux alone")
@pytest.mark.parametrize("own", ["", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_on_linux_the_engines_memory_grows_in_place_unless_somebody_has_chosen(
    own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _of_drivers(monkeypatch, nvidia=True)
    if own:
        monkeypatch.setenv(own, "max_split_size_mb:256")
    assert _allocator() == (
        {own: "max_split_size_mb:256"} if own else {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    )


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch has it for Linux alone")
@pytest.mark.parametrize(
    ("kernel", "nvidia", "amd", "grows"),
    [
        ("6.8.0-45-generic", True, True, True),  # a processor of AMD has it, too
        ("6.8.0-45-generic", False, True, False),
        ("6.8.0-45-generic", False, False, True),  # a container may hide the driver's files
        ("5.15.167.4-microsoft-standard-WSL2", False, False, False),
    ],
)
def test_the_engines_memory_grows_in_place_only_where_drivers_can_do_that(
    kernel: str, nvidia: bool, amd: bool, grows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In WSL its first allocation may fail; on a card of AMD it may never return."""
    _of_drivers(monkeypatch, nvidia=nvidia, amd=amd, kernel=kernel)
    assert _allocator() == ({"PYTORCH_ALLOC_CONF": "expandable_segments:True"} if grows else {})


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch has it for Linux alone")
def test_what_sdnext_has_its_own_pytorch_do_is_not_a_persons_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    _of_drivers(monkeypatch, nvidia=True)
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"):  # as its installer.py
        monkeypatch.setenv(name, "garbage_collection_threshold:0.80,max_split_size_mb:512")
    assert _allocator() == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:128")
    assert _allocator() == {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128"}


def _of_drivers(
    monkeypatch: pytest.MonkeyPatch, *, nvidia: bool, amd: bool = False, kernel: str = "6.8.0-45-generic"
) -> None:
    for key in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"):
        monkeypatch.delenv(key, raising=False)
    there, missing = Path(__file__), Path(__file__) / "missing"
    monkeypatch.setattr(environment, "_NVIDIA", there if nvidia else missing)
    monkeypatch.setattr(environment, "_AMD", there if amd else missing)
    monkeypatch.setattr(platform, "release", lambda: kernel)


def _allocator() -> dict[str, str]:
    return {key: value for key, value in environment.engine_variables().items() if key.endswith("_ALLOC_CONF")}


def _installed(folder: Path, name: str, version: str) -> Path:
    """An environment's package of one module, as pip leaves it. Returns the module."""
    site, about = folder / "lib" / "python3.11" / "site-packages", f"{name}-{version}.dist-info"
    files = {f"{name}/__init__.py": b"here = 1\n", f"{about}/METADATA": f"Name: {name}\nVersion: {version}\n".encode()}
    for path, content in files.items():
        (site / path).parent.mkdir(parents=True)
        (site / path).write_bytes(content)
    hashes = {path: base64.urlsafe_b64encode(hashlib.sha256(content).digest()) for path, content in files.items()}
    lines = [f"{path},sha256={hashes[path].decode().rstrip('=')},{len(files[path])}\n" for path in files]
    (site / about / "RECORD").write_text(f"{''.join(lines)}{name}/__pycache__/__init__.pyc,,\n{about}/RECORD,,\n")
    return site / name / "__init__.py"


@pytest.mark.parametrize("damage", ["emptied", "missing", "as long but other", "no record", "half a record"])
def test_packages_whose_files_are_damaged_are_found(tmp_path: Path, damage: str) -> None:
    module = _installed(tmp_path, "sound_one", "1.0")
    _installed(tmp_path, "other_one", "2.0")
    site, record = module.parents[1], module.parents[1] / "sound_one-1.0.dist-info" / "RECORD"
    (site / "~ther_one-1.0.dist-info").mkdir()
    assert installed_files.damaged(site, lambda said: None) == []
    if damage == "missing":
        module.unlink()
    elif "record" in damage:
        record.write_text("sound_one/__init__.py,sha2" if damage == "half a record" else "")
    else:
        module.write_text("" if damage == "emptied" else "gone = 1\n")
    assert installed_files.damaged(site, lambda said: None) == [("sound_one", "1.0")]


class _Pip:
    """Counts what the set-up does to an environment; the check fails until that was done which mends it."""

    def __init__(self, mended_by: str) -> None:
        self.mended_by, self.done = mended_by, list[str]()

    def make(self, folder: Path, progress: packages.Progress, *, anew: bool = False) -> bool:
        self.done += ["made anew"] if anew else []
        return anew

    def install(self, folder: Path, arguments: list[str], progress: packages.Progress, what: str) -> None:
        self.done += [arguments[-1]] if "--ignore-installed" in arguments else []

    def check(self) -> dict[str, Any]:
        if self.mended_by in self.done:
            return {"torch": "2", "device_name": "the CPU"}
        kind = self_check.CardFails if self.mended_by == "nothing" else self_check.DoesNotWork
        raise kind("ImportError: cannot import name 'safe_open'.")


@pytest.fixture
def pip(fresh: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> _Pip:
    made = _Pip(request.param)
    monkeypatch.setattr(environment, "SETTING_UP", fresh / "setting-up")
    monkeypatch.setattr(environment, "ENGINE_USERS", fresh / "users")
    monkeypatch.setattr(torch_build, "look", lambda: torch_build.Machine("Linux"))
    for name in ("make", "install"):
        monkeypatch.setattr(packages, name, getattr(made, name))
    monkeypatch.setattr(environment, "check", made.check)
    return made


LOCKED_SAFETENSORS = next(line for line in packages.requirements(LOCK) if line.startswith("safetensors=="))


@pytest.mark.parametrize(
    ("pip", "is_damaged", "done"),
    [
        (LOCKED_SAFETENSORS, True, [LOCKED_SAFETENSORS]),
        ("made anew", True, [LOCKED_SAFETENSORS, "made anew"]),
        ("made anew", False, ["made anew"]),
    ],
    indirect=["pip"],
)
def test_what_does_not_work_is_put_back_and_else_made_anew(
    pip: _Pip, is_damaged: bool, done: list[str], fresh: Path
) -> None:
    module = _installed(fresh, *LOCKED_SAFETENSORS.split("=="))
    if is_damaged:
        module.write_text("")
    report = environment.set_up(lambda said: None)
    assert report["device_name"] == "the CPU" and pip.done == done
    assert environment.is_current()


@pytest.mark.parametrize("pip", ["no bytecode"], indirect=True)
def test_what_python_has_compiled_may_be_what_is_damaged(
    pip: _Pip, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = _installed(fresh, *LOCKED_SAFETENSORS.split("=="))
    compiled = module.parent / "__pycache__" / "__init__.pyc"
    compiled.parent.mkdir()
    compiled.touch()
    check = environment.check
    monkeypatch.setattr(
        environment, "check", lambda: check() if compiled.exists() else {"torch": "2", "device_name": "the CPU"}
    )
    environment.set_up(lambda said: None)
    assert pip.done == [] and module.exists() and not compiled.exists()


@pytest.mark.parametrize("pip", ["nothing"], indirect=True)
def test_a_card_that_fails_costs_no_packages(pip: _Pip, fresh: Path) -> None:
    _installed(fresh, *LOCKED_SAFETENSORS.split("=="))
    with pytest.raises(self_check.CardFails):
        environment.set_up(lambda said: None)
    assert pip.done == [] and not environment.is_current()


def test_what_came_with_pytorch_is_put_back_from_where_that_came(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fresh / "lib" / "python3.11" / "site-packages" / "torch-2.13.0+cu126.dist-info").mkdir(parents=True)
    index = _Index("cu126", "1 damaged package")
    monkeypatch.setattr(packages, "install", index.install)
    damaged = [("nvidia_cublas_cu12", "12.6.4.1"), ("safetensors", "0.1"), ("torch", "2.13.0+cu126")]
    environment._reinstall(damaged, torch_build.Machine("Linux", "560.1"), lambda said: None)
    (ours, torchs) = index.asked
    assert ours[-1] == LOCKED_SAFETENSORS and "--ignore-installed" in ours and "--no-deps" in ours
    assert torchs[-2:] == ["nvidia_cublas_cu12==12.6.4.1", "torch==2.13.0+cu126"] and torchs[-3].endswith("/cu126")
