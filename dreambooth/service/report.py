"""What tells of a run that went wrong, as one .zip file to show to somebody: everything but pictures and secrets.

about.json      versions, machine, what the model is, how the run is and why it failed
settings.json   the run's settings, with what was changed since; no files, no folders, no addresses
states.json     the states that are kept: step, size, hash
events.jsonl    the last events
log.txt         the end of the log
"""

from __future__ import annotations

import io
import json
import os
import platform
import shutil
import sys
import zipfile
from collections import deque
from pathlib import Path
from typing import Any

from dreambooth import __version__
from dreambooth.core import model_record, schema
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.core.files.json_file import read_object
from dreambooth.core.install_paths import STAMP
from dreambooth.core.job_folder import Job, event_of
from dreambooth.core.privacy import Cleaner, is_secret
from dreambooth.core.settings import Settings
from dreambooth.service import environment, installation, runs

_EVENTS, _LOG_BYTES = 500, 100_000
_OFTEN = tuple(f'{{"event": "{kind}"'.encode() for kind in ("step", "stage", "picture"))  # as Job.report begins a line


def name(job: Job) -> str:
    """What the file is called where nobody says otherwise."""
    return f"{job.name.replace('/', '-')}-report.zip"


def write(job: Job, to: Path) -> Path:
    """Writes the report. Raises UserError if it cannot be written, or a file is there."""
    if to.exists():
        raise UserError(f"{to}: it exists already; name another file.")
    try:
        atomic.write_bytes(to, build(job))
    except OSError as error:
        raise UserError(f"{to}: the report cannot be written ({error.strerror}); name another place.") from None
    return to


def build(job: Job) -> bytes:
    """The report as a .zip file's bytes. Of what cannot be read it says so."""
    clean = Cleaner(_secrets(job))
    files = {
        "about.json": _json(clean.value(_about(job))),
        "settings.json": _json(clean.value(_settings(job))),
        "states.json": _json(clean.value(_states(job))),
        "events.jsonl": _events(job, clean),
        "log.txt": clean.text(installation.tail(job.log, _LOG_BYTES)),
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, text in files.items():
            archive.writestr(file, text.encode("utf-8", errors="backslashreplace"))
    return out.getvalue()


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, default=str)


def _secrets(job: Job) -> list[str]:
    """The values of the run's and its model's secret settings."""
    found = []
    for file in (job.folder / "settings.json", job.folder / "changes.json", job.folder.parents[1] / "settings.json"):
        try:
            flat = read_object(file)
        except UserError:
            continue
        found += [value for key, value in flat.items() if is_secret(key) and isinstance(value, str)]
    return found


def _about(job: Job) -> dict[str, Any]:
    summary = runs.summary(job)
    return {
        "version": __version__,
        "python": sys.version,
        "machine": _machine(job),
        "engine": _engine(),
        "model": _model(job),
        "run": {
            key: value for key, value in summary.items() if key not in ("outputs", "embeddings", "previews", "folder")
        },
        "outputs": [Path(path).name for path in summary["outputs"]],
    }


def _machine(job: Job) -> dict[str, Any]:
    pages = getattr(os, "sysconf_names", {}).keys() >= {"SC_PHYS_PAGES", "SC_PAGE_SIZE"}
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if pages else None,
        "free_disk_bytes": shutil.disk_usage(job.folder).free,
    }


def _engine() -> dict[str, Any]:
    """What was found out when the engine was set up; nothing is started for it."""
    try:
        stamp = read_object(STAMP)
    except UserError:
        return {"set_up": False}
    return {"set_up": True, "current": environment.is_current(), **stamp.get("report", {})}


def _model(job: Job) -> dict[str, Any]:
    """What the model is; its checkpoint by the name of its file alone."""
    try:
        record = read_object(job.folder.parents[1] / model_record.FILE)
    except UserError:
        return {}
    about = record.get("about")
    return {
        "source": Path(str(record.get("source", ""))).name,
        "about": {key: value for key, value in about.items() if key != "path"} if isinstance(about, dict) else {},
    }


def _settings(job: Job) -> dict[str, Any]:
    """Without secrets and without the files and folders of this machine."""
    try:
        return {
            "settings": schema.shareable(Settings, job.settings()),
            "changed_since": schema.shareable(Settings, job.changes()),
        }
    except UserError as error:
        return error.as_json()


def _states(job: Job) -> list[dict[str, Any]]:
    found = []
    for folder in sorted(job.state.iterdir()) if job.state.is_dir() else ():
        try:
            manifest = read_object(folder / "manifest.json")
        except UserError:
            manifest = {"damaged": True}
        found.append({"name": folder.name, **manifest})
    return found


def _events(job: Job, clean: Cleaner) -> str:
    """The last events, and of those before them all that are no steps; a long run has more steps than anybody reads."""
    before: deque[bytes] = deque(maxlen=_EVENTS)
    last: deque[bytes] = deque(maxlen=_EVENTS)
    try:
        with open(job.folder / "events.jsonl", "rb") as file:
            for line in file:
                if len(last) == _EVENTS and not last[0].startswith(_OFTEN):
                    before.append(last[0])
                last.append(line)
    except FileNotFoundError:
        pass
    events = [event for line in (*before, *last) if (event := event_of(line))]
    return "".join(json.dumps(clean.value(event), ensure_ascii=False) + "\n" for event in events)
