"""The layout of the C interface as a compiler sees it, and what may change of it.

``python -m tests.abi.layout`` compares ``arcflow.h`` with the recorded release; ``--record`` records it anew. Record it
with a release, after something was appended; never to silence the comparison: programs that were built against the
recorded header would read the wrong bytes. What cannot be done by appending needs a new ARCFLOW_API_VERSION beside the
old one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "runtime" / "native" / "include" / "arcflow" / "arcflow.h"
RELEASE = Path(__file__).parent / "arcflow-1.json"

Layout = dict[str, Any]
"""version; structs (size; fields in order: offset, size, declaration); enums; functions (types of callbacks)."""

_STRUCT = re.compile(r"typedef struct (\w+) \{(.*?)\} (\w+);", re.DOTALL)
_ENUM = re.compile(r"typedef enum (\w+) \{(.*?)\} (\w+);", re.DOTALL)
_CALLBACK = re.compile(r"typedef (\w[\w ]*)\(ARCFLOW_CALL\* (\w+)\)\((.*?)\);", re.DOTALL)
_POINTER_FIELD = re.compile(r"\(ARCFLOW_CALL\* (\w+)\)")


def read_layout(header: str, compiler: str = "cc", language: str = "c") -> Layout:
    """The layout of ``header`` (its text), with sizes and offsets from the compiler."""
    code = re.sub(r"/\*.*?\*/|//[^\n]*", " ", header, flags=re.DOTALL)
    structs = {name: _fields(body) for name, body, _ in _STRUCT.findall(code)}
    enums = {name: re.findall(r"(\w+) = ", body) for name, body, _ in _ENUM.findall(code)}
    lines = ['printf("version : %d\\n", (int)ARCFLOW_API_VERSION);']
    for name, fields in structs.items():
        lines.append(f'printf("size {name} : %zu\\n", sizeof({name}));')
        for field in fields:
            place = f"offsetof({name}, {field}), sizeof((({name}*)0)->{field})"
            lines.append(f'printf("field {name}.{field} : %zu %zu\\n", {place});')
    for constants in enums.values():
        lines += [f'printf("constant {constant} : %d\\n", (int){constant});' for constant in constants]
    found = _run("\n  ".join(lines), header, compiler, language)
    return {
        "version": found["version"][0],
        "structs": {
            name: {
                "size": found[f"size {name}"][0],
                "fields": {field: [*found[f"field {name}.{field}"], text] for field, text in fields.items()},
            }
            for name, fields in structs.items()
        },
        "enums": {
            name: {constant: found[f"constant {constant}"][0] for constant in constants}
            for name, constants in enums.items()
        },
        "functions": {name: f"{result}(*)({_words(values)})" for result, name, values in _CALLBACK.findall(code)},
    }


def exported_symbols(library: Path) -> list[str]:
    """What a shared library exports, sorted."""
    listing = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True)
    return sorted(line.split()[-1] for line in listing.stdout.splitlines())


def differences(released: Layout, current: Layout) -> list[str]:
    """What breaks programs that were built against ``released``: nothing where things were only appended."""
    found = []
    if current["version"] != released["version"]:
        found.append(f"ARCFLOW_API_VERSION was {released['version']} and is {current['version']}")
    for name, old in released["structs"].items():
        new = current["structs"].get(name)
        found += [f"{name} is gone"] if new is None else _struct_differences(name, old, new)
    for kind in ("enums", "functions"):
        for name, value in released[kind].items():
            now = current[kind].get(name)
            if isinstance(value, dict) and isinstance(now, dict):
                found += [
                    f"{constant} was {number} and is {now.get(constant, 'gone')}"
                    for constant, number in value.items()
                    if now.get(constant) != number
                ]
            elif now != value:
                found.append(f"{name} was {value!r} and is {now!r}")
    return found


def _struct_differences(name: str, old: Any, new: Any) -> list[str]:
    was, now = list(old["fields"].items()), list(new["fields"].items())
    found = [
        f"{name}, field {place}: was {field} and is {now[place] if place < len(now) else 'gone'}"
        for place, field in enumerate(was)
        if now[place : place + 1] != [field]
    ]
    if (len(now) > len(was) or new["size"] != old["size"]) and was[0][0] != "struct_size":
        found.append(f"{name} has no struct_size, so nothing can be appended to it")
    # A caller of the old header may leave anything in its struct's padding.
    found += [
        f"{name}.{field} lies in the padding of the released struct: put an unused field there"
        for field, (offset, *_) in now[len(was) :]
        if offset < old["size"]
    ]
    return found


def _fields(body: str) -> dict[str, str]:
    """The fields of a struct with their declarations, in order."""
    fields: dict[str, str] = {}
    for statement in body.split(";"):
        text = _words(statement)
        if not text:
            continue
        pointer = _POINTER_FIELD.search(text)
        if pointer:
            fields[pointer[1]] = text.replace(pointer[0], "(*)")
            continue
        kind, _, names = text.rpartition(" ") if "," not in text else text.partition(" ")
        for field in names.split(","):
            star = "*" if field.strip().startswith("*") else ""
            fields[field.strip(" *")] = kind + star
    return fields


def _words(text: str) -> str:
    return " ".join(text.split())


def _run(body: str, header: str, compiler: str, language: str) -> dict[str, list[int]]:
    """The numbers that a program with ``body`` prints, by what stands before their colon."""
    program = f"#include <stdio.h>\n#include <stddef.h>\n{header}\nint main(void) {{\n  {body}\n  return 0;\n}}\n"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "layout"
        subprocess.run([compiler, "-w", "-x", language, "-", "-o", str(binary)], input=program, text=True, check=True)
        output = subprocess.run([binary], capture_output=True, text=True, check=True).stdout
    rows = (line.split(" : ") for line in output.splitlines())
    return {key: [int(number) for number in numbers.split()] for key, numbers in rows}


def _text(layout: Layout) -> str:
    """As JSON, a line a field."""
    text = json.dumps(layout, indent=2)
    return re.sub(r"\[[^\[\]]*\]", lambda match: _words(match[0]).replace("[ ", "[").replace(" ]", "]"), text) + "\n"


def main() -> int:
    """Compare, or record with --record."""
    current = read_layout(HEADER.read_text())
    if "--record" in sys.argv[1:]:
        RELEASE.write_text(_text(current))
        return 0
    found = differences(json.loads(RELEASE.read_text()), current)
    sys.stdout.write("".join(f"{line}\n" for line in found) or "compatible\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
