"""The WebUI around us, AUTOMATIC1111's, Forge, reForge or SD.Next. Besides `lending.py`,
`drawing.py` and `describing.py` no other file imports its `modules`.

Where they differ the difference is one line here, and says so.
"""

from __future__ import annotations

import base64
import binascii
import importlib.util
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modules import paths, sd_models, shared, ui_extra_networks

from dreambooth.core import device
from dreambooth.core.drawing import Drawing, Keep, Look
from dreambooth.core.files import confinement
from dreambooth.core.project import Folders
from dreambooth.host import describing, drawing, lending
from dreambooth.host.base import ALONE_MINUTES, PAGE_TOKEN

SECTION = ("dreambooth", "Dreambooth")
ALONE = "dreambooth_alone_minutes"


class WebUI:
    """The WebUI as the page, the API and the queue see it."""

    token = PAGE_TOKEN
    sends_to_txt2img = True

    def __init__(self) -> None:
        self.name, self.version = _name(), _version()
        self.is_dark: bool | None = {"dark": True, "light": False}.get(shared.cmd_opts.theme or "")
        self.app: Any = None  # the web application, once it has started
        self._folders: Folders | None = None
        is_confined = getattr(shared.cmd_opts, "hide_ui_dir_config", False)  # SD.Next hides it
        confinement.keep_to(self._own_folders if is_confined else None)
        number = str(getattr(shared.cmd_opts, "device_id", None) or "")
        if number.isdigit() and self.name not in ("Forge", "reForge"):  # which have the flag, and do not heed it
            os.environ[device.GPU_VARIABLE] = number  # A1111 works on that one, and shows it to nobody else

    def folders(self) -> Folders:
        """The WebUI's models folder, with what flags have moved. Raises UserError if that cannot be noted there."""
        if self._folders is None:
            self._folders = Folders(Path(paths.models_path).absolute()).moved(
                projects=_flag("dreambooth_models_path"),
                checkpoints=_flag("ckpt_dir") or _setting("ckpt_dir"),
                loras=_flag("lora_models_path") or _flag("lora_dir") or _setting("lora_dir"),
                embeddings=_flag("embeddings_dir") or _setting("embeddings_dir"),
            )
        return self._folders

    def _own_folders(self) -> list[Path]:
        """Where its models lie, and ours; some WebUIs look for checkpoints in more folders than one."""
        own = self.folders()
        listed = {path.parent for _, path in self.checkpoints()}
        return [own.models, own.projects, own.checkpoints, own.loras, own.embeddings, *listed]

    @property
    def alone_minutes(self) -> float:
        try:
            return max(0.0, float(shared.opts.data.get(ALONE, ALONE_MINUTES)))
        except (TypeError, ValueError):  # the field was emptied
            return ALONE_MINUTES

    def checkpoints(self) -> list[tuple[str, Path]]:
        return [(info.title, Path(info.filename)) for info in list(sd_models.checkpoints_list.values())]

    @property
    def captioners(self) -> tuple[str, ...]:
        return describing.captioners()

    def describe(self, picture: Path, captioner: str) -> str:
        return describing.describe(picture, captioner)

    @property
    def samplers(self) -> tuple[str, ...]:
        return drawing.samplers() if self.name != "SD.Next" else ()  # its txt2img is another one

    def draw(self, wanted: Drawing, look: Look, keep: Keep) -> None:
        drawing.draw(wanted, look, keep)

    def refresh(self) -> None:
        for page in ui_extra_networks.extra_pages:
            if page.name in ("checkpoints", "model", "lora"):  # "model" is SD.Next's
                page.refresh()
        if self.name == "Forge":
            _read_new_embeddings()

    def started(self, app: Any) -> None:
        """The web application is there; no picture has been asked for yet."""
        self.app = app
        lending.prepare()

    def start_lean(self) -> None:
        """Where the WebUI starts while an engine has the GPU, no model is loaded beside it; the first picture loads it.

        Called while the WebUI loads its extensions, before it would load its model.
        """
        if lending.is_on() and device.is_busy(self.folders()):
            shared.cmd_opts.skip_load_model_at_start = True
            lending.hold_back()

    def lend_gpu(self) -> None:
        lending.lend()

    def take_gpu_back(self) -> None:
        lending.take_back()

    @property
    def has_accounts(self) -> bool:
        return bool(_accounts())

    def admits(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> bool:
        """By the page's login cookie or by --api-auth's name and password; everybody where neither is asked for."""
        accounts = _accounts()
        page_login = getattr(self.app, "auth", None)
        if not accounts and not page_login:
            return True
        tokens = getattr(self.app, "tokens", {})
        if any(name.startswith("access-token") and value in tokens for name, value in cookies.items()):
            return True
        return any(secrets.compare_digest(_basic(headers).encode(), pair.encode()) for pair in accounts)


def add_settings(checkbox: Any, number: Any) -> None:
    """Our section of the WebUI's settings. `checkbox` and `number` are gradio's classes."""
    shared.opts.add_option(
        ALONE,
        shared.OptionInfo(
            ALONE_MINUTES,
            "Pause a run, with its state saved, when the WebUI has been closed for so many minutes (0: never)",
            number,
            section=SECTION,
        ),
    )
    shared.opts.add_option(
        lending.SETTING,
        shared.OptionInfo(
            True,
            "Free the GPU while Dreambooth works (off: pictures can be drawn meanwhile, if memory is enough for both)",
            checkbox,
            section=SECTION,
        ),
    )


def _flag(name: str) -> Path | None:
    """A folder that a flag names; a flag is missing where its extension is off or was installed since the start."""
    value = getattr(shared.cmd_opts, name, None)
    return Path(value).expanduser().absolute() if value else None


def _setting(name: str) -> Path | None:
    """A folder that one of SD.Next's settings names; the others have no settings of folders."""
    value = shared.opts.data.get(name)
    return Path(value).expanduser().absolute() if value and isinstance(value, str) else None


def _read_new_embeddings() -> None:
    """Forge reads its embeddings when it loads a model and never again. AUTOMATIC1111 and reForge look for new ones
    when they draw; SD.Next when it loads its model, as it does after each loan, and when its networks are refreshed.

    What it knows stays known meanwhile, so that a picture which is being drawn keeps its words.
    """
    model = sd_models.model_data.sd_model  # before the first picture there is none yet, which knows nothing
    for name in ("text_processing_engine", "text_processing_engine_l", "text_processing_engine_g"):  # two of SDXL
        if database := getattr(getattr(model, name, None), "embeddings", None):
            for folder in database.embedding_dirs.values():
                if folder.has_changed():
                    database.load_from_dir(folder)
                    folder.update()


def _name() -> str:
    if importlib.util.find_spec("modules_forge"):
        return "reForge" if importlib.util.find_spec("ldm_patched") else "Forge"
    return "AUTOMATIC1111" if importlib.util.find_spec("modules.launch_utils") else "SD.Next"


def _version() -> str:
    try:
        from modules import launch_utils
    except ImportError:  # SD.Next
        return str(sys.modules["installer"].get_version().get("updated", ""))
    return str(launch_utils.git_tag())


def _accounts() -> list[str]:
    """name:password of everybody whom the API admits."""
    known = getattr(getattr(shared, "api", None), "credentials", None)  # SD.Next's, of its --auth and --auth-file
    if known is not None:
        return [f"{name}:{password}" for name, password in known.items()]
    return [pair.strip() for pair in (shared.cmd_opts.api_auth or "").split(",") if pair.strip()]


def _basic(headers: Mapping[str, str]) -> str:
    """name:password of HTTP's basic login; empty where there is none."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value, validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return ""
