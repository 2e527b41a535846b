"""A model's folder (`models/dreambooth/NAME`) and the WebUI's folders beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dreambooth.core import model_record
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic, confinement, file_names
from dreambooth.core.files.json_file import read_object
from dreambooth.core.model_record import is_absolute_path
from dreambooth.core.models import checkpoint
from dreambooth.core.models.families import is_image_side
from dreambooth.core.models.load_overrides import Origin
from dreambooth.core.models.model_file import SUFFIXES
from dreambooth.core.schema import from_flat, is_path
from dreambooth.core.settings import Settings, parse, to_json, whole, write_json

LONGEST_NAME = 80
LONGEST_NAME_BYTES = 180  # of the 255 that a disk takes: steps, endings and the marks of what is being written follow
CREATING, COPYING = "creating", "copying"  # how the folders of models begin that are being made

_USUAL = {
    "projects": "dreambooth",
    "checkpoints": "Stable-diffusion",
    "loras": "Lora",
    "embeddings": "embeddings",  # but see _usual
}


@dataclass(frozen=True)
class Folders:
    """The WebUI's models folder and what lies in it, or elsewhere where a person has moved it.

    What was moved is written in `models/dreambooth/folders.json`, so that the page, the command line and the engine
    all look in the same place: {"projects": ..., "checkpoints": ..., "loras": ..., "embeddings": ...}, each only where
    it differs. Where several WebUIs with flags of their own share a models folder, the file is the last one's; `given`
    is what holds for one of them, and goes with the jobs that it asks for.
    """

    models: Path
    given: Any = field(default=None, compare=False)  # in place of the file, in its form; None: read the file

    @property
    def projects(self) -> Path:
        return self._place("projects")

    @property
    def downloads(self) -> Path:
        return self.projects / ".downloads"

    @property
    def download_errands(self) -> Path:
        return self.downloads / ".errands"

    @property
    def trash(self) -> Path:
        return self.projects / ".trash"

    @property
    def checkpoints(self) -> Path:
        return self._place("checkpoints")

    @property
    def loras(self) -> Path:
        return self._place("loras")

    @property
    def embeddings(self) -> Path:
        return self._place("embeddings")

    def _place(self, key: str) -> Path:
        return self._moved.get(key) or self._usual(key)

    def _usual(self, key: str) -> Path:
        """Where it is if nobody has moved it. Most WebUIs have their embeddings beside the models folder."""
        beside = self.models.parent / _USUAL[key]
        return beside if key == "embeddings" and beside.is_dir() else self.models / _USUAL[key]

    @cached_property
    def _moved(self) -> dict[str, Path]:
        places = self.given
        if not isinstance(places, dict):
            try:
                places = read_object(self.models / "dreambooth" / "folders.json")
            except UserError:
                return {}
        return {key: Path(place) for key, place in places.items() if key in _USUAL and is_absolute_path(place)}

    @property
    def places(self) -> dict[str, str]:
        """What differs from the usual, as the file has it."""
        return {key: str(place) for key, place in self._moved.items()}

    def moved(self, **places: Path | None) -> Folders:
        """The same models folder with its folders, by the names above, in these places from now on; None means the
        usual one. Raises UserError if that cannot be written down."""
        places_to_write = {key: str(place) for key, place in places.items() if place and place != self._usual(key)}
        if places_to_write == self.places:
            return Folders(self.models, places_to_write)
        note = self.models / "dreambooth" / "folders.json"
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_text(note, json.dumps(places_to_write, indent=1))
        except OSError as error:
            raise UserError(f"{note}: the file cannot be written ({error.strerror}).") from None
        return Folders(self.models, places_to_write)


@dataclass(frozen=True)
class Project:
    """One model that is being taught: where it is and what it was made from."""

    folder: Path
    source: Path
    origin: Origin
    about: dict[str, Any]
    former: tuple[str, ...] = ()  # names that it had before; results of that time lie in folders that are called so

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def errands(self) -> Path:
        return self.folder / "errands"

    @property
    def class_pictures(self) -> Path:
        return self.folder / "class"

    def results(self, folders: Folders, chosen: Settings) -> Path:
        """Where a run with these settings writes what it has learned."""
        places = {"lora": folders.loras, "embedding": folders.embeddings, "checkpoint": folders.checkpoints}
        place = places[chosen.result_kind]
        return place / self.name if chosen.saving.use_subdirectory else place

    def is_result(self, folders: Folders, path: Path) -> bool:
        """Whether a file lies where runs of this model write what they have learned."""
        places = (folders.checkpoints, folders.loras, folders.embeddings)
        own = {place / name for place in places for name in ("", self.name, *self.former)}
        return path.suffix.lower() in SUFFIXES and path.parent in own

    def embedding(self, result: Path) -> Path:
        """Where the text lies that Imagic has fitted to the picture of a result."""
        return self.folder / "embeddings" / f"{result.name}.safetensors"

    @property
    def latents(self) -> Path:
        return self.folder / "latents"

    @property
    def resolution(self) -> int:
        return int(self.about["resolution"])

    @property
    def problem(self) -> str:
        """What stops every run of this model; empty if nothing does."""
        what = f"{self.source}: the checkpoint that this model was made from"
        try:
            return "" if self.source.exists() else f"{what} is gone; put it back."
        except OSError as error:  # in a folder that may not be looked into, or on a drive that does not answer
            return f"{what} cannot be reached ({error.strerror}); look at its drive and its rights."

    @property
    def reading(self) -> Origin:
        """How to read what runs have made of it: as what it is itself."""
        about = self.about
        return Origin(
            family=about["family"],
            prediction_type=about["prediction_type"],
            zero_terminal_snr="on" if about["zero_terminal_snr"] else "off",
            resolution=self.resolution,
        )

    def settings(self) -> dict[str, Any]:
        """All of the model's own settings as dotted keys. Raises UserError if the file is gone or damaged."""
        mend = "remove it and write the settings anew, or put a copy of it back"
        return whole(read_object(self.folder / "settings.json", mend))


def check_name(name: str) -> None:
    """Raises UserError unless `name` can be a folder's name on every system."""
    if len(name) > LONGEST_NAME:
        raise UserError(f"A model's name has at most {LONGEST_NAME} characters (this has {len(name):,}).")
    if file_names.is_device(name):
        raise UserError(f"{name!r} cannot be a model's name: Windows takes it for a device; choose another.")
    if not file_names.is_sound(name):
        raise UserError(
            f"{name!r} cannot be a model's name: use up to 80 letters, digits, spaces, dots, - and _, "
            "no slash, and no dot or space at either end."
        )


def check_new(folders: Folders, name: str) -> Path:
    """The folder that a new model gets. Raises UserError for a bad or taken name."""
    check_name(name)
    if (length := len(name.encode())) > LONGEST_NAME_BYTES:
        raise UserError(
            f"{name!r} is too long for a model's name: with what follows it, its letters take {length} bytes of a "
            f"file's name, and {LONGEST_NAME_BYTES} are free; choose a shorter one."
        )
    folder = folders.projects / name
    if folder.exists():
        raise UserError(f"A model named {name!r} exists already ({folder}); choose another name.")
    return folder


def create(
    folders: Folders,
    name: str,
    source: Path,
    settings: dict[str, Any] | None = None,
    origin: dict[str, Any] | None = None,
) -> Project:
    """A new model's folder. Reads the source's header only; copies nothing. `origin` says how to read it, by key.

    Raises UserError for a bad or taken name, a source that cannot be trained from, or bad settings.
    """
    folder = check_new(folders, name)
    source = confinement.named(str(source), "source")
    chosen = from_flat(Origin, origin or {})
    if chosen.resolution and not is_image_side(chosen.resolution):
        raise UserError(f"resolution: it must be a multiple of 8, and at least 64 (it is {chosen.resolution}).")
    if chosen.vae:
        chosen.vae = str(confinement.named(chosen.vae, "vae"))
        checkpoint.read_vae(Path(chosen.vae))
    about = model_record.about_source(source, chosen)
    checked = parse(settings or {})
    check_places(settings or {}, dict)
    folders.projects.mkdir(parents=True, exist_ok=True)
    try:
        with atomic.staged_folder(folder, CREATING) as staged:
            model_record.write(staged, folder, source, chosen, about)
            write_json(staged / "settings.json", to_json(checked))
    except OSError as error:
        raise UserError(f"{folder}: the model's folder cannot be written ({error.strerror}).") from None
    return open_project(folders, name)


def open_project(folders: Folders, name: str) -> Project:
    """The model named `name`. Raises UserError if there is none."""
    check_name(name)
    folder = folders.projects / name
    if not (folder / model_record.FILE).exists():
        known = ", ".join(names(folders)) or "none"
        raise UserError(f"There is no model named {name!r} in {folders.projects} (there: {known}).")
    return read(folder, folders.checkpoints)


def read(folder: Path, checkpoints: Path) -> Project:
    """The model in a folder. One whose checkpoint is gone from its place is made from that of the same name among
    `checkpoints`, if there is one. Raises UserError for one that is damaged."""
    record = model_record.read(folder, checkpoints)
    return Project(folder, record.source, record.origin, record.about, record.former)


def write_settings(project: Project, flat: dict[str, Any]) -> None:
    """Makes these the model's own settings. Raises UserError for settings that will not do, and writes nothing then."""
    checked = parse(flat)
    check_places(flat, project.settings)
    write_json(project.folder / "settings.json", to_json(checked))


def check_places(flat: dict[str, Any], before: Callable[[], dict[str, Any]]) -> None:
    """Raises UserError for settings that name a place which may not be named here, and did not before."""
    confinement.check_settings(flat, before, lambda key: is_path(Settings, key))


def names(folders: Folders) -> list[str]:
    """The names of all models."""
    return sorted(
        path.parent.name for path in folders.projects.glob(f"*/{model_record.FILE}") if path.parent.name[0] != "."
    )
