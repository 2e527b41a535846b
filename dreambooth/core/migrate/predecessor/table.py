"""What became of the predecessor's controls, as a table for people:

python -m dreambooth.core.migrate.predecessor.table > docs/coming-from.md
"""

from __future__ import annotations

import re

from dreambooth.core.migrate.predecessor.controls import CONTROLS, Control
from dreambooth.core.schema import leaves
from dreambooth.core.settings import Settings

_HEAD = """# Coming from the old extension

Every control of sd_dreambooth_extension whose name, place or meaning differs here, or that is not here, by where it was
there. What is not listed is called the same and means the same. On the page *Find a setting* (Settings) knows the old
names too, and says the same of what is no setting here.

`python -m dreambooth import NAME .../models/dreambooth/OLD/db_config.json`, or *Import settings* on the Model tab,
takes over all that is the same and says of each key what became of it, in the words of this table.
"""
_PRESSED = re.compile(r'"([^"]+)"')  # what the page calls so
_LABELS = {leaf.key: leaf.spec.label for leaf in leaves(Settings)}
_KEY = re.compile("|".join(sorted(map(re.escape, _LABELS), key=len, reverse=True)))


def markdown() -> str:
    lines = [_HEAD]
    for section, some in CONTROLS.items():
        lines += [f"## {section}", "", "| there | here | what differs |", "|---|---|---|", *map(_row, some), ""]
    return "\n".join(lines).rstrip() + "\n"


def _row(control: Control) -> str:
    here = [f"{_LABELS[key]} (`{key}`)" for key in control.ours] + [control.place] * bool(control.place)
    differs = _KEY.sub(r"`\g<0>`", control.why)
    return _PRESSED.sub(r"*\1*", f"| {control.label} | {', '.join(here) or '–'} | {differs} |")


if __name__ == "__main__":
    print(markdown(), end="")
