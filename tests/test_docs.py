"""In README and docs, each command, link, name and option exists, and README stays short."""

import argparse
import ast
import contextlib
import importlib.util
import inspect
import io
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import nbformat
import pytest
from packaging.requirements import Requirement

import benchlib as bl
import benchlib.__main__

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "results/README.md"]
LINKED = [*PAGES, ROOT / "findings/README.md", ROOT / "SECURITY.md"]
README_LINES, README_COLUMNS, README_WIDEST = 160, 100, 110
HEART_FILES, HEART_LINES = 16, 3600

PROGRAMS = {
    "bash",
    "conda",
    "curl",
    "jupyter",
    "locust",
    "make",
    "papermill",
    "pip",
    "python",
    "python3",
}
PROGRAMS |= {"./nightly.sh", "source", "ssh", "uvicorn"}
SHELL_BLOCK = re.compile(r"^```(?:bash|sh|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
ANY_BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
CODE_SPAN = re.compile(r"`([^`]+)`")


def prose(page):
    """The text of a page without its fenced blocks."""
    return ANY_BLOCK.sub("", page.read_text())


def code_spans(page):
    return [" ".join(span.split()) for span in CODE_SPAN.findall(prose(page))]


# ---- commands


class Command(NamedTuple):
    """One command of a page: the names of the variables before it, its program, and its arguments."""

    page: str
    variables: tuple[str, ...]
    program: str
    arguments: tuple[str, ...]

    def __str__(self):
        return f"{self.page}: {shlex.join([self.program, *self.arguments])}"


def split_line(page, line):
    """The commands of a shell line, with their comments dropped."""
    for text in re.split(r"\s(?:&&|\|\|?)\s", line.removeprefix("$ ")):
        words = shlex.split(text, comments=True)
        if words[:1] == ["export"]:
            words = words[1:]
        variables = []
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0], re.DOTALL):
            variables.append(words.pop(0).partition("=")[0])
        program = words.pop(0) if words else ""
        if program or variables:
            yield Command(
                page.name, tuple(variables), program.removeprefix(".venv/bin/"), tuple(words)
            )


def commands_of(page):
    """The commands of a page's shell blocks, and of its code spans that begin with a program."""
    blocks = "\n".join(SHELL_BLOCK.findall(page.read_text()))
    for line in blocks.replace("\\\n", " ").splitlines():
        yield from split_line(page, line)
    for span in code_spans(page):
        found = re.match(r"(?:[A-Z_]+=\S+ )*(\S+)( .*)?$", span)
        is_name_alone = found[2] is None and found[1] != "./nightly.sh"
        if found[1] in PROGRAMS and not is_name_alone:
            yield from split_line(page, span)


COMMANDS = [command for page in PAGES for command in commands_of(page)]


def options_in(shown):
    return set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", shown))


@cache
def options_of(*command):
    """The options that `command --help` names."""
    if command[:2] == (sys.executable, "-m"):
        return options_of_module(command[2])
    return options_in(
        subprocess.run(
            [*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    )


def options_of_module(module):
    """The same of `python -m module`, run here: a process of its own would import torch anew."""
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(shown):
        patch.setattr(sys, "argv", [module, "--help"])
        patch.delitem(sys.modules, module, raising=False)
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert not ended.value.code
    return options_in(shown.getvalue())


def given_options(arguments):
    return {word.partition("=")[0] for word in arguments if re.match(r"--?[A-Za-z]", word)}


def makefile():
    return (ROOT / "Makefile").read_text()


def make_targets():
    return re.search(r"^\.PHONY: (.*)$", makefile(), re.MULTILINE)[1].split()


def check_make(arguments):
    for word in arguments:
        name, equals, value = word.partition("=")
        if not equals:
            assert name in make_targets(), word
            continue
        assert f"$({name})" in makefile() or f"$(if $({name})" in makefile(), word
        options = given_options(shlex.split(value))
        if options:
            program = re.search(rf"\$\(BIN\)/(\S+) (?:-m )?(\S+).*\$\({name}\)", makefile())
            is_module = program[1] == "python"
            command = (sys.executable, "-m") if is_module else (BIN / program[1],)
            assert options <= options_of(*command, program[2]), word


def check_python(arguments, monkeypatch):
    if arguments[:2] == ("-m", "benchlib"):
        check_benchlib(arguments[2:], monkeypatch)
        return
    if arguments[0] == "-m":
        module, given = arguments[1], arguments[2:]
        assert importlib.util.find_spec(module), module
    else:
        module, given = arguments[0].removesuffix(".py").replace("/", "."), arguments[1:]
        assert (ROOT / arguments[0]).is_file(), arguments[0]
    options = given_options(given)
    if (
        options
    ):  # A command without options may be a script that has no --help, and would begin to work.
        assert options <= options_of(sys.executable, "-m", module)


def check_benchlib(arguments, monkeypatch):
    """Checks that our own command line takes the arguments, without serving or writing anything."""
    monkeypatch.setattr("benchlib.serving.standalone.serve_alone", lambda *_, **__: 0)
    monkeypatch.setattr("benchlib.load.standing_worker.work", lambda *_, **__: 0)
    monkeypatch.setattr("benchlib.report.write_report", lambda *_, **__: Path("index.html"))
    monkeypatch.setattr("benchlib.answers.read_headlines", lambda _: {})
    monkeypatch.setattr("benchlib.notebook_pages.write_pages", lambda _: [])
    if "--help" in arguments:
        with pytest.raises(SystemExit, match=r"^0$"):
            benchlib.__main__.main([*arguments])
    else:
        assert benchlib.__main__.main([*arguments]) == 0


def check_pip(arguments):
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("command", choices=["install"])
    parser.add_argument("-r", dest="lists", action="append", default=[])
    parser.add_argument("-e", dest="projects", action="append", default=[])
    parser.add_argument("packages", nargs="*")
    given = parser.parse_args([*arguments])
    for name in given.lists:
        assert (ROOT / name).is_file(), name
    for project in given.projects:
        folder, *extras = re.split(r"[\[\],]", project)
        assert folder == "."
        assert {extra for extra in extras if extra} <= set(PROJECT["optional-dependencies"]), (
            project
        )
    for package in given.packages:
        name = Requirement(package).name.replace("-", "_")
        sources = "\n".join(path.read_text() for path in (ROOT / "benchlib").rglob("*.py"))
        assert re.search(rf"\b(?:import|from) {name}\b", sources), (
            f"nothing in benchlib imports {name}"
        )


def check_papermill(arguments):
    assert given_options(arguments) <= options_of(BIN / "papermill")
    [notebook, *_] = [word for word in arguments if word.startswith("notebooks/")]
    cells = nbformat.read(ROOT / notebook, as_version=4).cells
    [parameters] = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    texts = [value for option, value in pairwise(arguments) if option == "-y"]
    names = [value for option, value in pairwise(arguments) if option == "-p"]
    names += [name for text in texts for name in re.findall(r"[{,]\s*(\w+):", text)]
    for name in names:
        assert re.search(rf"^.*\b{name}\b.* = ", parameters, re.MULTILINE), name


def check_curl(arguments):
    from benchlib.serving.app import create_app
    from benchlib.serving.engine.engine import Engine
    from benchlib.serving.schemas import GenerateRequest

    [url] = [word for word in arguments if re.match(r"https?://|localhost|127\.", word)]
    path = urlsplit(url if "//" in url else f"//{url}").path
    assert path in {*create_app(Engine(lambda: None)).openapi()["paths"], "/docs"}
    for option, value in pairwise(arguments):
        if option in ("-d", "--data", "--json"):
            GenerateRequest(**json.loads(value))


def check_docker(arguments):
    known = set(re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    for option, value in pairwise(arguments):
        if option == "--build-arg":
            assert value.partition("=")[0] in known, value


def check_variable(name, program):
    if program == "./nightly.sh":
        assert f"${{{name}:-" in (ROOT / program).read_text(), name
    elif name.startswith("BENCHLIB_WORKLOAD_"):
        bl.Workload.from_env({name: "128"})
    else:
        assert name.startswith(("BENCHLIB_", "CUDA_", "HF_")), name


def test_readme_shows_the_two_commands():
    readme = {
        (command.program, *command.arguments) for command in COMMANDS if command.page == "README.md"
    }
    assert {("make", "workbook"), ("make", "test")} <= readme


def test_every_make_target_is_named_in_readme_or_docs():
    named = {
        word for command in COMMANDS if command.program == "make" for word in command.arguments
    }
    assert set(make_targets()) <= named


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_each_command_exists(command, monkeypatch):
    program, arguments = command.program, command.arguments
    for name in command.variables:
        check_variable(name, program)
    for word in arguments:
        if word.startswith(
            ("notebooks/", "benchlib/", "benchmarks/", "tests/", "findings/", "requirements")
        ):
            assert (ROOT / word).exists(), word
    if program == "make":
        check_make(arguments)
    elif program in ("python", "python3"):
        check_python(arguments, monkeypatch)
    elif program == "pip":
        check_pip(arguments)
    elif program == "papermill":
        check_papermill(arguments)
    elif program == "curl":
        check_curl(arguments)
    elif program in ("locust", "uvicorn"):
        assert given_options(arguments) <= options_of(BIN / program)
        assert program != "uvicorn" or "benchlib.serving.app:app" in arguments
    elif program == "jupyter":
        assert (BIN / f"jupyter-{arguments[0]}").is_file(), arguments[0]
    elif program == "conda":
        assert (ROOT / arguments[arguments.index("-f") + 1]).is_file()
    elif program == "source":
        assert arguments == (".venv/bin/activate",)
    elif program == "docker":
        check_docker(arguments)
    elif program == "cp":
        assert (ROOT / arguments[0]).is_file(), arguments[0]
    elif program == "systemctl":
        assert arguments in (("daemon-reload",), ("enable", "--now", "benchlib"))
    elif program == "bash":
        assert (ROOT / arguments[0]).is_file(), arguments[0]
    elif program in ("serve", "kubectl"):
        assert arguments[0] == "create" or (ROOT / arguments[-1]).is_file(), arguments
    else:
        assert program in ("", "./nightly.sh", "ssh"), f"{program}: not checked by anything here"


# ---- names of the package

SNIPPETS = [(page.name, text) for page in PAGES for text in PYTHON_BLOCK.findall(page.read_text())]
SPANS = [
    (page.name, text) for page in PAGES for text in code_spans(page) if re.match(r"bl\.\w", text)
]


@pytest.mark.parametrize(("page", "text"), SNIPPETS + SPANS, ids=lambda text: text[:50])
def test_python_in_docs_uses_names_and_arguments_that_exist(page, text):
    for node in ast.walk(ast.parse(text.replace("(..., ", "("))):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "bl":
            assert node.attr in bl.__all__, f"{page}: bl.{node.attr}"
        if (
            isinstance(node, ast.Call)
            and getattr(getattr(node.func, "value", None), "id", None) == "bl"
        ):
            parameters = inspect.signature(getattr(bl, node.func.attr)).parameters
            assert {keyword.arg for keyword in node.keywords} <= set(parameters), (
                f"{page}: {ast.unparse(node)}"
            )


# ---- links and pictures


def headings(page):
    """The anchors that GitHub gives a page's headings."""
    for title in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        kept = re.sub(r"[^\w\- ]", "", title.lower())
        yield kept.replace(" ", "-")


LINKS = [
    (page, target)
    for page in LINKED
    for target in re.findall(r"\]\(([^()\s]+)\)", prose(page))
    if not target.startswith(("http://", "https://"))
]


@pytest.mark.parametrize(("page", "target"), LINKS, ids=lambda part: getattr(part, "name", part))
def test_each_link_and_picture_points_to_something(page, target):
    path, _, anchor = target.partition("#")
    there = (page.parent / path).resolve() if path else page
    assert there.is_relative_to(ROOT)
    assert there.exists(), target
    if anchor:
        assert anchor in set(headings(there)), target


def test_each_page_of_the_docs_leads_to_all_others_in_one_order():
    orders = set()
    for page in (ROOT / "docs").glob("*.md"):
        links, _, rest = page.read_text().partition("\n\n")
        assert rest.startswith("# "), page
        names = re.findall(r"\[([^]]+)\]\(|\*\*([^*]+)\*\*", links)
        orders.add(tuple(one or other for one, other in names))
        assert links.count("**") == 2, page
    [order] = orders
    assert len(order) == 1 + len(list((ROOT / "docs").glob("*.md")))


def test_readme_leads_to_every_page_of_the_docs():
    linked = {
        target.partition("#")[0]
        for page, target in LINKS
        if page.name == "README.md" and page.parent == ROOT
    }
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= linked


def test_the_findings_are_listed():
    folder = ROOT / "findings"
    listed = re.findall(r"^\| `(\w+\.sh)` \|", (folder / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in folder.glob("*.sh"))


# ---- length


def test_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= README_LINES
    for line in lines:
        has_link = line.startswith(("|", "!")) or "](" in line
        assert len(line) <= (README_WIDEST if has_link else README_COLUMNS), line


# ---- the heart of the code


def heart():
    """The files that README lists under "Read it in an evening", in its order."""
    readme = (ROOT / "README.md").read_text()
    after = readme.partition("**Read it in an evening**")[2].partition("\n## ")[0]
    for item in re.split(r"^\d+\. ", after, flags=re.MULTILINE)[1:]:
        folder = ROOT / "benchlib"
        for name in CODE_SPAN.findall(item):
            if name.endswith("/"):
                folder = ROOT / "benchlib" / name
            else:
                yield folder / name


def test_the_heart_can_be_read_in_an_evening():
    files = list(heart())
    assert len(set(files)) == HEART_FILES
    lines = {path: len(path.read_text().splitlines()) for path in files}
    assert sum(lines.values()) <= HEART_LINES, lines
