"""All settings as a table for people, and as a JSON schema for programs."""

from __future__ import annotations

from typing import Any

from dreambooth.core.schema import Leaf, leaves
from dreambooth.core.values import plain


def json_schema(cls: type) -> dict[str, Any]:
    """A JSON schema of the flat form, for the API and for editors."""
    names = {bool: "boolean", int: "integer", float: "number", str: "string"}
    properties = {}
    for leaf in leaves(cls):
        entry: dict[str, Any] = {"type": names[leaf.kind], "title": leaf.spec.label, "description": leaf.spec.help}
        entry["default"] = leaf.default
        if leaf.choices:
            entry["enum"] = list(leaf.choices)
        if leaf.spec.secret:
            entry["writeOnly"] = True
        for name, bound in (("minimum", leaf.spec.min), ("maximum", leaf.spec.max)):
            if bound is not None:
                entry[name] = bound
        properties[leaf.key] = entry
    return {"type": "object", "properties": properties, "additionalProperties": False}


def markdown(cls: type) -> str:
    """The reference of all settings, one table a group."""
    lines = [
        "# All settings",
        "",
        "Each is a flag of the command line, as `--lora.rank 8`, and a key of the HTTP API. The page shows its label.",
        "",
        "`N` stands for a concept's number: `concepts.0.repeats` is the first's, `concepts.1.repeats` the second's.",
    ]
    current = None
    for leaf in leaves(cls):
        section = leaf.key.split(".")[0]
        if section != current:
            current = section
            lines += [
                "",
                f"## {section}",
                "",
                "| setting | label | default | values | meaning |",
                "|---|---|---|---|---|",
            ]
        default = "" if leaf.default == "" else f"`{plain(leaf.default)}`"
        meaning = leaf.spec.help.replace("|", "\\|")  # or the cell would end there
        lines.append(f"| `{leaf.key}` | {leaf.spec.label} | {default} | {_values(leaf)} | {meaning} |")
    return "\n".join(lines).strip() + "\n"


def _values(leaf: Leaf) -> str:
    if leaf.choices:
        return ", ".join(map(str, leaf.choices))
    low, high = leaf.spec.min, leaf.spec.max
    if low is not None and high is not None:
        return f"{plain(low)} to {plain(high)}"
    if low is not None:
        return f"at least {plain(low)}"
    return {bool: "on, off", str: "text"}.get(leaf.kind, "")
