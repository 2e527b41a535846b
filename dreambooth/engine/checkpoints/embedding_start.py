"""Whether words can go on from an embedding: known from its header, before anything is loaded. Light, for a plan."""

from __future__ import annotations

from pathlib import Path

from dreambooth.core import learned_words
from dreambooth.core.errors import UserError
from dreambooth.core.models import anatomy, checkpoint, embedding_file
from dreambooth.core.models.model_file import Header
from dreambooth.core.settings import Settings


def check(settings: Settings, model: Header) -> Path | None:
    """The file that is gone on from; None where there is none. Raises UserError for a file that cannot be gone on from
    with these settings or this model."""
    named = settings.embedding.start_file.strip()
    if not named or not settings.words_learn:
        return None
    path = Path(named).expanduser()
    header = checkpoint.read_header(path)
    if reason := _objection(header, settings, model):
        raise UserError(f"embedding.start_file: {path} {reason}")
    return path


def _objection(header: Header, settings: Settings, model: Header) -> str:
    if checkpoint.describe(header).kind != "embedding":
        return "is no embedding; name another file."
    vectors = embedding_file.parts(header.tensors)
    if sum(one.shape[-1] for one in vectors.values()) != anatomy.of(model).word:
        return "is of vectors of another width than this model's; it is another family's."
    words, learning = learned_words.of(header.metadata), settings.words
    if len(learning) > 1 and not set(learning) <= set(words):
        return f"holds {' and '.join(words) or 'one word'}, and {' and '.join(learning)} learn; teach one at a time."
    return ""
