"""The documents: links lead somewhere, commands that are shown exist, messages are the source's, pages can be made."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest
from accelerate.commands.launch import launch_command_parser

from scripts.docs import c_header, commands
from scripts.docs.links import ROOT, links_of, pages, rewritten, site_path, target_of
from tests.docs.anchors import anchors_of, slug

GENERATED = ("reference/commands.md", "reference/c.md")
"""Pages that are made when the site is built: no file of the repository holds them."""

PAGES = sorted(pages())
SHELL = {"", "sh", "bash", "console"}
"""Languages of code blocks whose lines are commands."""

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`((?:python (?:-m|gpu/|benchmarks/|examples/)|make |accelerate launch )[^`\n]*)`")
NATIVE = ("arcflow-cli", "arcflow-serve")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


# --- links ---


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    wrong = []
    for link in links_of(text_of(page)):
        if not link.is_local:
            continue
        target = target_of(page, link)
        generated = site_path(target) in GENERATED
        if not (ROOT / target).is_file() and not generated:
            wrong.append(f"{link.path}: there is no {target}")
        elif link.anchor and not generated and link.anchor not in anchors_of(text_of(target)):
            wrong.append(f"{link.path}#{link.anchor}: {target} has no such heading")
    assert not wrong


def test_generated_pages_are_linked_from_the_site_alone() -> None:
    assert not [
        page
        for page in PAGES
        if not page.startswith("docs/")
        for link in links_of(text_of(page))
        if link.is_local and site_path(target_of(page, link)) in GENERATED
    ], "who reads the repository without building the site has no such file"


def test_links_read_otherwise_on_the_site() -> None:
    text = "[a](docs/log.md#x) ![b](docs/images/grid.png) [c](https://x.org/y) [d](#here) [e](examples/embed.c)\n"
    assert rewritten(text, "README.md") == (
        "[a](log.md#x) ![b](images/grid.png) [c](https://x.org/y) [d](#here) [e](source/examples/embed.c)\n"
    )
    assert rewritten("[a](../../DESIGN.md)\n", "docs/reference/python.md") == "[a](../architecture.md)\n"
    assert rewritten("```\n[a](../DESIGN.md)\n```\n[a](../DESIGN.md)", "docs/fp8.md") == (
        "```\n[a](../DESIGN.md)\n```\n[a](architecture.md)"
    )


def test_anchors_are_those_of_the_site() -> None:
    assert slug("The C++ part") == "the-c-part"
    assert slug("C++ and the server") == "c-and-the-server"
    assert anchors_of("# A `b` c\n```\n# not one\n```\n## D, e?\n") == {"a-b-c", "d-e"}


# --- commands ---


def shown(page: str) -> Iterator[tuple[str, bool]]:
    """(command, whole) of a page: lines of its code blocks, and commands in sentences, which may leave parts out."""
    text = text_of(page)
    for language, block in FENCE.findall(text):
        if language not in SHELL:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"\$\(|&&|\|", line):
                yield part.split("#")[0].strip().rstrip(")&").strip(), True
    yield from ((command, False) for command in INLINE.findall(FENCE.sub("", text)))


SHOWN = sorted({(command, whole) for page in PAGES for command, whole in shown(page) if command})


class ParsedError(Exception):
    """Raised in place of what a command does after it has read its arguments."""


def parse(file: Path, arguments: list[str], whole: bool, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the program's own parser says of the arguments, "" for nothing."""

    def parse_args(self: argparse.ArgumentParser, args: list[str] | None = None) -> NoReturn:
        read(self, args)
        raise ParsedError

    read = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "path", list(sys.path))
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            module_of(file).main(arguments)
    except ParsedError:
        return ""
    except SystemExit:
        message = said.getvalue()
        return "" if not whole and "are required" in message else message
    finally:
        monkeypatch.undo()
    return "the program did not read its arguments first"


@cache
def module_of(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"shown_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def files() -> dict[tuple[str, ...], Path]:
    return {command.words: command.file for command in commands.commands()}


@cache
def make_targets() -> tuple[set[str], set[str]]:
    text = text_of("Makefile")
    return set(re.findall(r"^([a-z]+):", text, re.MULTILINE)), set(re.findall(r"^([A-Z]+) *\?=", text, re.MULTILINE))


@cache
def native_options() -> set[str]:
    folders = [ROOT / "runtime" / "native", ROOT / "examples"]
    sources = [path for folder in folders for path in folder.rglob("*.cpp")]
    return set(re.findall(r"--[a-z][a-z-]+", "\n".join(path.read_text(encoding="utf-8") for path in sources)))


def fault(command: str, whole: bool, monkeypatch: pytest.MonkeyPatch) -> str:
    """Why a command that a document shows would not be understood; "" if it would, or is none of ours."""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""  # A piece of JSON, or of another program.
    while words and (re.fullmatch(r"\w+=\S*", words[0]) or words[0] in ("nice", "export")):
        words.pop(0)
    if not words:
        return ""
    program, *rest = words
    if words[:2] == ["accelerate", "launch"]:
        launch, unknown = launch_command_parser().parse_known_args([*rest[1:], *([] if "-m" in rest else ["none.py"])])
        if unknown:
            return f"there is no {unknown[0]}"
        ours = ["python", "-m", launch.training_script, *launch.training_script_args]
        return fault(shlex.join(ours), whole, monkeypatch) if launch.module else ""
    if re.fullmatch(r"python(3(\.\d+)?)?", Path(program).name) and rest and not rest[0].startswith("-c"):
        return _python_fault(rest, whole, monkeypatch)
    if program == "make":
        targets, variables = make_targets()
        names = [word.split("=")[0] for word in rest]
        return ", ".join(n for n, w in zip(names, rest, strict=True) if n not in (variables if "=" in w else targets))
    if Path(program).name in NATIVE:
        return ", ".join(word for word in rest if word.startswith("--") and word not in native_options())
    if Path(program).name == "pip":
        extras = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
        named = re.findall(r"\.\[([\w,]+)\]", command)
        return ", ".join(extra for extra in ",".join(named).split(",") if extra and extra not in extras)
    if program.startswith("scripts/"):
        return "" if (ROOT / program).is_file() else "there is no such script"
    return ""


def _python_fault(rest: list[str], whole: bool, monkeypatch: pytest.MonkeyPatch) -> str:
    ours = tuple(rest[:2]) if rest[0] == "-m" else (rest[0],)
    if ours in files():
        return parse(files()[ours], rest[len(ours) :], whole, monkeypatch)
    if ours[0] == "-m":
        first = ours[1].split(".")[0]
        if first == "scripts" and len(rest) == 2:  # It takes no options.
            return "" if ROOT.joinpath(*ours[1].split(".")).with_suffix(".py").is_file() else "there is no such script"
        return f"there is no command {ours[1]}" if (ROOT / first).is_dir() and first != "tests" else ""
    return "" if (ROOT / ours[0]).is_file() else f"there is no {ours[0]}"


@pytest.mark.parametrize(("command", "whole"), SHOWN)
def test_commands_shown_exist(command: str, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    said = fault(command, whole, monkeypatch)
    assert not said, f"a document shows {command!r}: {said}"


def test_the_documents_show_many_commands() -> None:
    ours = [command for command, _ in SHOWN if re.search(r"python\S* -m (export|runtime|engines|arcflow)", command)]
    assert len(ours) > 30
    assert any(command.startswith("make ") for command, _ in SHOWN)


@pytest.mark.parametrize(
    "command",
    [
        "python -m export.buidl --model tiny",
        "python -m export.build --modle tiny",
        "python -m export.calibrate --model tiny",
        ".venv/bin/python -m runtime.generate x --seed one",
        "python examples/none.py",
        "make demmo",
        "make demo PRMPT=x",
        "build/native/bin/arcflow-cli x --nope",
        "pip install -e '.[nope]'",
    ],
)
def test_a_wrong_command_is_found(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fault(command, True, monkeypatch)


# --- messages ---


@cache
def sources() -> list[str]:
    """Every string of the Python source, parts that differ as "\\0", and the text of the other languages' files."""
    found = []
    for package in ("foundation", "engines", "runtime", "export", "arcflow"):
        for path in (ROOT / package).rglob("*.py"):
            found += [_flat(node) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if _is_text(node)]
    others = [ROOT / "Makefile", *(ROOT / "scripts").glob("*.sh"), *(ROOT / "cmake").glob("*.cmake")]
    others += (ROOT / "runtime" / "native").rglob("*.cpp")
    found += [re.sub(r'"\s*\n\s*"', "", path.read_text(encoding="utf-8")) for path in others]
    return found


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _flat(node: ast.AST) -> str:
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in parts)


def messages() -> list[str]:
    """The messages in the first column of the page's tables."""
    rows = re.findall(r"^\| `([^`]+)` \|", text_of("docs/troubleshooting.md"), re.MULTILINE)
    return [str(row) for row in rows]


@pytest.mark.parametrize("message", messages())
def test_messages_are_those_of_the_source(message: str) -> None:
    pieces = [piece.strip() for piece in message.split("...") if piece.strip(" ;:,.")]
    pattern = re.compile(".*?".join(re.escape(piece) for piece in pieces), re.DOTALL)
    assert any(pattern.search(text) for text in sources()), "no message of the source reads so"


# --- generated pages ---


def test_the_page_of_the_c_interface_has_every_function_and_type() -> None:
    header, page = c_header.HEADER.read_text(encoding="utf-8"), c_header.reference()
    table = header[header.index("typedef struct ArcflowApi {") : header.index("} ArcflowApi;")]
    names = re.findall(r"\(ARCFLOW_CALL\* (\w+)\)", table)
    assert [function.name for function in c_header.functions(header)] == names
    types = re.findall(r"^(?:\} |typedef struct \w+ )(\w+);", header, re.MULTILINE)
    for name in {*names, *types, "arcflow_get_api", "ArcflowOnStep"} - {c_header.TABLE}:
        assert f"### {name}\n" in page or f"| `{name}` |" in page, name


def test_the_page_of_commands_has_each_with_its_help() -> None:
    page = commands.reference()
    for command in commands.commands():
        assert f"## {command.name}\n" in page
    assert "--low-vram" in page and "--keep-high PATTERN" in page
    assert {"python -m export.build", "python -m runtime.generate", "python -m runtime.native"} <= {
        command.name for command in commands.commands()
    }


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    home = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<img" in home and "build/site" in home
    scripts = re.findall(r"<(?:script|link)[^>]+(?:src|href)=\"(https?:[^\"]+)", home)
    assert not scripts, "a page fetches something from a network"
