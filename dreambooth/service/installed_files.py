"""Which installed packages are no longer as they were installed.

pip looks at a package's name and version alone, and takes one whose files are empty or gone for installed. Each package
brings a RECORD of its files with their sizes and hashes, and these are compared here.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import shutil
from pathlib import Path

from dreambooth.service.packages import Progress

_READ_AT_ONCE = 1 << 20
_TOLD_EVERY = 10  # packages


def damaged(site: Path, progress: Progress) -> list[tuple[str, str]]:
    """Name and version of each package in a site-packages folder of which a file is missing or differs."""
    packages, found = sorted(site.glob("[!~]*.dist-info")), []  # with a tilde in front: what pip was about to remove
    for number, about in enumerate(packages):
        if number % _TOLD_EVERY == 0:
            progress(f"Comparing the installed files: {number} of {len(packages)} packages")
        if not _is_whole(site, about):
            name, _, version = about.name.removesuffix(".dist-info").rpartition("-")
            found.append((name, version))
    return found


def forget_bytecode(site: Path) -> None:
    """Removes what Python has compiled: no RECORD tells whether it is damaged, and Python makes it anew."""
    for folder in list(site.rglob("__pycache__")):
        shutil.rmtree(folder, ignore_errors=True)


def _is_whole(site: Path, about: Path) -> bool:
    try:
        with open(about / "RECORD", encoding="utf-8", newline="") as record:
            files = [row for row in csv.reader(record) if row]
        return bool(files) and all(_is_as_recorded(site, *row) for row in files)
    except (OSError, ValueError, TypeError, csv.Error):  # no RECORD, half of one, or a file that cannot be read
        return False


def _is_as_recorded(site: Path, path: str, checksum: str, size: str) -> bool:
    # Compiled files may have been compiled again, and licences may have been packed (service/venv.py).
    if not checksum or path.endswith(".pyc") or ".dist-info/licenses/" in path:
        return True
    file, (algorithm, _, wanted) = site / path, checksum.partition("=")
    if size and file.stat().st_size != int(size):
        return False
    digest = hashlib.new(algorithm)
    with open(file, "rb") as opened:
        while block := opened.read(_READ_AT_ONCE):
            digest.update(block)
    return base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode() == wanted.rstrip("=")
