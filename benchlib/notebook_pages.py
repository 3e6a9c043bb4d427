"""Writes the web pages of an executed notebook: the answer on top, logs folded, with and without code.

Knows nbconvert and our template (notebook_page/). Ignorant of what a notebook measures, and of the
page of all results (report.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import HTMLExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

from benchlib.answers import printed_answer, printed_failure

LONGEST_LOG = 8
"""A log of more lines than these, or of as much text, is folded."""
WITHOUT_CODE = "-without-code"
_NO_NOTEBOOK = (ValueError, AttributeError, KeyError, TypeError, nbformat.ValidationError)
"""What nbformat raises for a file that is no notebook."""
_OTHER_NOTEBOOK = re.compile(r"\]\(\d\d_(\w+)\.ipynb\)")


def write_pages(path: Path) -> list[Path]:
    """Writes NAME.html and NAME-without-code.html beside the notebook, and returns their paths.

    A link to another notebook leads to its place on the page of all results, which is one folder
    up. Raises OSError where the notebook can't be read, and ValueError where it is none.
    """
    try:
        notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    except _NO_NOTEBOOK as error:
        raise ValueError(f"{path} is no notebook: {error}") from error
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _OTHER_NOTEBOOK.sub(r"](../index.html#\1)", cell.source)
    written = []
    for ending, has_code in (("", True), (WITHOUT_CODE, False)):
        page = path.with_name(f"{path.stem}{ending}.html")
        page.write_text(_page(notebook, path.stem, has_code), encoding="utf-8")
        written.append(page)
    return written


def _page(notebook: Any, name: str, has_code: bool) -> str:
    exporter = HTMLExporter(  # type: ignore[no-untyped-call]
        template_name="notebook_page",
        extra_template_basedirs=[str(Path(__file__).parent)],
        exclude_input=not has_code,
        exclude_input_prompt=not has_code,
        exclude_output_prompt=not has_code,
        # papermill keeps each line of a log as an output of its own.
        preprocessors=[CoalesceStreamsPreprocessor],
    )
    other_page, other_words = f"{name}.html", "with"
    if has_code:
        other_page, other_words = f"{name}{WITHOUT_CODE}.html", "without"
    resources = {
        "metadata": {"name": name},
        "other_page": other_page,
        "other_words": other_words,
        "answer": printed_answer(notebook),
        "failure": printed_failure(notebook),
        "longest_log": LONGEST_LOG,
    }
    page, _ = exporter.from_notebook_node(notebook, resources=resources)
    return str(page)
