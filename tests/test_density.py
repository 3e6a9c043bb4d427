"""The package stays legible: no file is packed, and one name means one thing.

Density is tokens per line of code. A line of code holds a token that is neither a comment nor a
docstring. An f-string counts as one token. Well-known packages that read easily have at most 8.5
tokens a line.
"""

import ast
import io
import sys
import tokenize
from collections import defaultdict
from pathlib import Path

import pytest

import benchlib

PACKAGE = Path(benchlib.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
DENSEST_FILE = 10
DENSEST_WHOLE = 8.5

# Each room of `questions` has these, and each folder its __init__. The other `plots` lists their
# names.
ROOM_FILES = {"measure", "judge", "plots", "__init__"}
ENTRY_POINTS = {"main"}

LAYOUT = {
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.COMMENT,
}
# From Python 3.12 on an f-string comes in parts.
FSTRING_START = getattr(tokenize, "FSTRING_START", None)
FSTRING_END = getattr(tokenize, "FSTRING_END", None)


def docstring_lines(source):
    """The numbers of the lines of docstrings, and of strings that are statements of their own."""
    lines = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
            continue
        if isinstance(node.value.value, str):
            lines.update(range(node.lineno, node.end_lineno + 1))
    return lines


def code(source):
    """How many lines of code a source has, and how many tokens."""
    without = docstring_lines(source)
    lines = set()
    tokens = 0
    open_strings = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in LAYOUT or token.start[0] in without:
            continue
        lines.update(range(token.start[0], token.end[0] + 1))
        if token.type == FSTRING_END:
            open_strings -= 1
            continue
        if not open_strings:
            tokens += 1
        if token.type == FSTRING_START:
            open_strings += 1
    return len(lines), tokens


def test_tokens_and_lines_by_hand():
    source = '"""Says hello."""\n\n# a comment\nname = "you"\nprint(\n    f"hello, {name}"\n)\n'
    assert code(source) == (4, 3 + 2 + 1 + 1)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_file_is_packed(file):
    lines, tokens = code(file.read_text(encoding="utf-8"))
    assert tokens <= DENSEST_FILE * lines, f"{tokens / lines:.1f} tokens per line of code"


def test_the_package_as_a_whole_is_easy_to_read():
    measured = [code(file.read_text(encoding="utf-8")) for file in FILES]
    lines = sum(lines for lines, _ in measured)
    tokens = sum(tokens for _, tokens in measured)
    assert tokens <= DENSEST_WHOLE * lines, f"{tokens / lines:.2f} tokens per line of code"


def repeated(places):
    """The names that occur in more than one place."""
    return {name: where for name, where in places.items() if len(where) > 1}


def test_no_two_modules_have_one_name():
    places = defaultdict(list)
    for file in FILES:
        if file.stem not in ROOM_FILES:
            places[file.stem].append(str(file.relative_to(PACKAGE)))
    for folder in {file.parent for file in FILES}:
        places[folder.name].append(f"{folder.relative_to(PACKAGE)}/")
    # The engine's own file opens its folder; the names of all plots stand beside the rooms'.
    places.pop("engine")
    assert not repeated(places)


def test_no_module_is_named_as_one_of_the_standard_library():
    names = {file.stem for file in FILES} | {file.parent.name for file in FILES}
    assert not (names - {"__init__", "__main__"}) & sys.stdlib_module_names


def test_no_two_classes_or_public_functions_have_one_name():
    places = defaultdict(list)
    for file in FILES:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            is_class = isinstance(node, ast.ClassDef)
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if not (is_class or is_function) or node.name in ENTRY_POINTS:
                continue
            if is_class or not node.name.startswith("_"):
                places[node.name].append(str(file.relative_to(PACKAGE)))
    assert not repeated(places)
