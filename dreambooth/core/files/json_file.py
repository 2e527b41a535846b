"""Reading JSON objects that a crash, a full disk or a person may have spoilt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic


def read_object(path: Path, mend: str = "start a new run") -> dict[str, Any]:
    """A file's JSON object. Raises UserError, with the mend, if the file is gone or holds anything else."""
    try:
        content = json.loads(atomic.read(path).decode("utf-8-sig"))  # with the mark that some editors put in front
        if isinstance(content, dict):
            return content
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError):
        pass
    raise UserError(f"{path}: the file is damaged; {mend}.")
