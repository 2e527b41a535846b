"""What the name of a picture's file says: the words that a person wrote there, and nothing where a device chose it."""

from __future__ import annotations

import re

_COUNTER_BEFORE = re.compile(r"^(\d+[-_.)]+\s*|0\d*\s+)+")
_COUNTER_AFTER = re.compile(r"(\s*\(\d+\)|[\s_-]+\d+)+$")
_PARTS = re.compile(r"[\W_]+")
# What programs draw at random: a UUID, and any such number in hexadecimal digits.
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_KEY = re.compile(r"(?=.*\d)[0-9a-f]{12,}", re.IGNORECASE)
# What cameras, phones and programs call a picture, what more of them do where a number follows, and what they add.
_DEVICE = r"dsc|dscf|dscn|image|img|mvi|photo|picture|pxl|screenshot|untitled"
_WITH_NUMBER = rf"{_DEVICE}|cimg|dcim|dji|gopr|gp|hpim|imag|kimg|mg|p|pict|received|signal|vid|whatsapp|wp"
_ADDED = r"am|at|burst|cover|e|edited|fb|hdr|instagram|mp|night|on|pano|pm|portrait|wa"


def words(stem: str) -> str:
    """A file's name as a caption: without its counters, and _ as spaces; empty where nobody wrote it.

    >>> words("00012-sks_dog on grass (3)")
    'sks dog on grass'
    >>> words("PXL_20230504_123456789.MP")
    ''
    """
    text = stem.encode(errors="ignore").decode().strip()  # a file's name need not be Unicode
    if is_by_device(text):
        return ""
    return " ".join(_COUNTER_AFTER.sub("", _COUNTER_BEFORE.sub("", text)).replace("_", " ").split())


def is_by_device(name: str) -> bool:
    """Whether nothing in a name was written by a person."""
    parts = _PARTS.split(_UUID.sub("", name).lower())
    words = {re.sub(r"\d+", "", part) for part in parts if not _KEY.fullmatch(part)} - {""}
    if not words:
        return True
    known = _WITH_NUMBER if any(map(str.isdigit, name)) else _DEVICE
    return any(re.fullmatch(known, word) for word in words) and all(
        re.fullmatch(f"{known}|{_ADDED}", word) for word in words
    )
