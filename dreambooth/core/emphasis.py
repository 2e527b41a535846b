r"""Brackets in a prompt, as the WebUI writes them: (word:1.2) and ((word)) count more, [word] less, \( is a bracket.

Where weights are not read, a bracket stands for itself, with a backslash before it or without: taggers write one into
captions, so that the WebUI reads a name such as tifa \(ff7\) with its brackets.
"""

from __future__ import annotations

import re

MOST = 100.0  # times that any word counts
_STEP = 1.1  # what a pair of brackets without a number does
_ESCAPED = re.compile(r"\\([()\[\]])")
_BRACKET = re.compile(r"(?<!\\)[()\[\]]")
_NUMBER = r":\s*(?P<weight>[+-]?(?:\d{1,4}(?:\.\d*)?|\.\d{1,9}))\s*\)"
_SIGN = re.compile(rf"\\(?P<meant>[()\[\]\\]?)|{_NUMBER}|[()\[\]]")
_WEIGHED = re.compile(rf"(?<!\\)\([^()]*{_NUMBER}")


def read(prompt: str, *, weighted: bool) -> list[tuple[str, float]]:
    """The pieces of a prompt, each with how much it counts; neighbours that count alike are one piece."""
    if not weighted:
        return [(_ESCAPED.sub(r"\1", prompt), 1.0)]
    pieces, opened = list[tuple[str, float]](), {"(": list[int](), "[": list[int]()}

    def weigh(start: int, weight: float) -> None:
        pieces[start:] = [(text, max(-MOST, min(MOST, before * weight))) for text, before in pieces[start:]]

    at = 0
    for sign in _SIGN.finditer(prompt):
        pieces.append((prompt[at : sign.start()], 1.0))
        at, symbol = sign.end(), sign[0]
        if sign["meant"] is not None:
            pieces.append((sign["meant"], 1.0))
        elif symbol in opened:
            opened[symbol].append(len(pieces))
        elif symbol == "]" and opened["["]:
            weigh(opened["["].pop(), 1 / _STEP)
        elif symbol != "]" and opened["("]:
            weigh(opened["("].pop(), float(sign["weight"] or _STEP))
        else:
            pieces.append((symbol, 1.0))
    pieces.append((prompt[at:], 1.0))
    for bracket, weight in (("(", _STEP), ("[", 1 / _STEP)):
        for start in opened[bracket]:  # what is never closed goes on to the end
            weigh(start, weight)
    return _joined(pieces)


def bare(prompt: str, *, weighted: bool) -> str:
    """Its words alone."""
    return "".join(text for text, _ in read(prompt, weighted=weighted))


def for_webui(text: str) -> str:
    """A text that is read without weights, as the WebUI is told to read it."""
    return _BRACKET.sub(r"\\\g<0>", text)


def has_weights(prompt: str) -> bool:
    """Whether a weight is written in it, such as (word:1.2)."""
    return bool(_WEIGHED.search(prompt))


def in_brackets(text: str) -> list[tuple[int, int]]:
    """Where brackets of both kinds open and close in it."""
    found, opened = list[tuple[int, int]](), {")": list[int](), "]": list[int]()}
    for bracket in _BRACKET.finditer(text):
        if (closing := {"(": ")", "[": "]"}.get(bracket[0])) is not None:
            opened[closing].append(bracket.start())
        elif opened[bracket[0]]:
            found.append((opened[bracket[0]].pop(), bracket.end()))
    return found


def _joined(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    joined: list[tuple[str, float]] = []
    for text, weight in pieces:
        if text and joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        elif text:
            joined.append((text, weight))
    return joined or [("", 1.0)]
