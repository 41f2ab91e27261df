"""A page about the C interface, made from the comments of ``arcflow.h``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from scripts.docs.links import ROOT

HEADER = ROOT / "runtime" / "native" / "include" / "arcflow" / "arcflow.h"
TABLE = "ArcflowApi"

_COMMENT = r"(?:/\*(?P<comment>(?:(?!\*/).)*)\*/\s*)?"
_DECLARATION = re.compile(
    rf"^{_COMMENT}(?P<code>typedef (?:struct|enum) (?P<name>\w+) \{{.*?^\}} \w+;"
    r"|typedef \w[^;{]*\(ARCFLOW_CALL\* (?P<callback>\w+)\)[^;]*;"
    r"|ARCFLOW_EXPORT [^;]*?(?P<export>\w+)\([^;]*;)",
    re.DOTALL | re.MULTILINE,
)
_OPAQUE = re.compile(r"^typedef struct (\w+) \1;\s*/\* (.*?) \*/$", re.MULTILINE)
_FUNCTION = re.compile(
    rf"^  {_COMMENT}(?P<result>[^\s/][^;{{]*?)\(ARCFLOW_CALL\* (?P<name>\w+)\)\((?P<arguments>[^)]*)\);"
    r"(?: /\* (?P<remark>.*?) \*/)?",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Function:
    """An entry of the table: its name, its signature as a C function, and what the header says about it."""

    name: str
    signature: str
    comment: str


def functions(header: str) -> list[Function]:
    """The entries of the table of functions, in its order."""
    body = next(match["code"] for match in _DECLARATION.finditer(header) if match["name"] == TABLE)
    return [
        Function(
            match["name"],
            f"{match['result'].strip()} {match['name']}({' '.join(match['arguments'].split())});",
            _prose(match["comment"] or match["remark"] or ""),
        )
        for match in _FUNCTION.finditer(body)
    ]


def reference() -> str:
    """The page in Markdown: the header's introduction, objects, functions, then structs and callbacks as they stand."""
    return "\n".join(_sections(HEADER.read_text(encoding="utf-8")))


def _sections(header: str) -> Iterator[str]:
    yield "# C API\n"
    yield "Made from the comments of `arcflow.h` when the site is built. How to build: [C++ services](../native.md).\n"
    yield _introduction(header)
    yield "## Objects\n\n| object | what it is |\n|---|---|"
    yield from (f"| `{name}` | {text} |" for name, text in _OPAQUE.findall(header))
    yield f"\n## Functions of the table\n\nAll are entries of `{TABLE}`: `api->context_create(...)`.\n"
    for function in functions(header):
        yield f"### {function.name}\n\n```c\n{function.signature}\n```\n{_paragraph(function.comment)}"
    yield "## Types and callbacks\n"
    for match in _DECLARATION.finditer(header):
        name = match["name"] or match["callback"] or match["export"]
        if name != TABLE:
            yield f"### {name}\n{_paragraph(_prose(match['comment'] or ''))}\n```c\n{match['code']}\n```\n"


def _introduction(header: str) -> str:
    """The comment at the top, its program as a block of code."""
    text = header[: header.index("*/")].removeprefix("/*")
    lines = [re.sub(r"^ \*( |$)", "", line) for line in text.strip().splitlines()]
    return "\n".join(line.strip() if not line.startswith("    ") else line for line in lines) + "\n"


def _paragraph(text: str) -> str:
    return f"\n{text}\n" if text else ""


def _prose(comment: str) -> str:
    text = " ".join(re.sub(r"^\s*\*? ?", "", line) for line in comment.strip().splitlines())
    return text[:1].upper() + text[1:] + ("" if not text or text[-1] in ".:?" else ".")
