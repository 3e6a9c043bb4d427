"""The page of an executed notebook: its answer first, long logs folded, no network, no code on request."""

import re
from itertools import product
from pathlib import Path

import nbformat
import pytest
from matplotlib.colors import to_rgb

import benchlib
from benchlib.__main__ import main
from benchlib.notebook_pages import LONGEST_LOG, write_pages
from tests.test_pictures import contrast

EVIL = "<script>alert(1)</script> & more"
new = nbformat.v4
REPORT = Path(benchlib.__file__).with_name("report.html")


def stream(text):
    return new.new_output("stream", name="stdout", text=text)


def written(folder, *cells):
    """The notebook's file, with an opening text and a link before the given cells."""
    text = "# Does it work?\n\nNext: [How many?](03_load.ipynb), [docs](https://example.org)"
    notebook = new.new_notebook(cells=[new.new_markdown_cell(text), *cells])
    notebook.metadata.title = "Does it work?"
    path = folder / "01_quickstart.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def pages(tmp_path):
    lines = [f"line {number}\n" for number in range(LONGEST_LOG + 3)]
    log = "".join(lines)
    cells = [
        new.new_code_cell("plan = 1", outputs=[stream(line) for line in lines]),
        new.new_code_cell("short = 2", outputs=[stream("a short log")]),
        new.new_code_cell("print(answer)", outputs=[stream(f"It works: {EVIL}\n" + log)]),
    ]
    path = written(tmp_path, *cells)
    assert main(["page", str(path)]) == 0
    return [
        (tmp_path / name).read_text()
        for name in ("01_quickstart.html", "01_quickstart-without-code.html")
    ]


def test_the_answer_comes_first_and_is_escaped(pages):
    for page in pages:
        body = page[page.index("<main>") :]
        assert body.index("It works: &lt;script&gt;") < body.index("Does it work?")
        assert "<script>alert" not in body
        assert "<title>Does it work?</title>" in page


def test_a_long_log_is_folded_but_neither_a_short_one_nor_the_answer(pages):
    for page in pages:
        (folded,) = re.findall(r"<details.*?</details>", page, re.DOTALL)
        assert f"The log ({LONGEST_LOG + 3} lines), at last: line {LONGEST_LOG + 2}" in folded
        assert "line 5" in folded
        assert "a short log" not in folded


def test_a_log_of_few_long_lines_is_folded_too(tmp_path):
    cell = new.new_code_cell("plan = 1", outputs=[stream("many words " * 100)])
    write_pages(written(tmp_path, cell, new.new_code_cell("print(answer)")))
    page = (tmp_path / "01_quickstart.html").read_text()
    assert "The log (1 line), at last: many words many" in page


def test_one_page_has_the_code_and_the_other_has_not(pages):
    with_code, without = pages
    assert "short" in re.sub("<[^>]*>", "", with_code).split()
    assert "plan = 1" not in re.sub("<[^>]*>", "", without)
    assert "a short log" in without
    assert 'href="01_quickstart-without-code.html">This page without code</a>' in with_code
    assert 'href="01_quickstart.html">This page with code</a>' in without


def test_a_page_loads_nothing_and_its_links_lead_to_the_page_of_all_results(pages):
    for page in pages:
        assert not re.search(r"<(script|link|img)[^>]*(src|href)=.?http", page)
        assert "<script" not in page
        assert 'href="../index.html#load"' in page
        assert 'href="../index.html"' in page
        assert "03_load.ipynb" not in page
        assert 'href="https://example.org"' in page


def test_wide_things_scroll_in_their_own_box_and_the_dark_is_meant(pages):
    for page in pages:
        assert ".jp-OutputArea-output { overflow-x: auto; }" in page
        assert "prefers-color-scheme: dark" in page


def test_the_letters_of_both_pages_stand_out_by_day_and_by_night(pages):
    code = r"(--jp-(?:mirror-editor-\w+|content-link|inputprompt-font)-color\w*): (#\w+)"
    light, _, dark = pages[0].partition("/* our page")[2].partition("prefers-color-scheme: dark")
    for page, fill in ((light, "#f5f5f5"), (dark, "#242424")):
        colours = dict(re.findall(code, page))
        assert "--jp-mirror-editor-comment-color" in colours
        for name, colour in colours.items():
            assert contrast(to_rgb(colour), to_rgb(fill)) >= 4.5, name
    assert ".jp-InputPrompt, .jp-OutputPrompt { opacity: 1; }" in light

    light, _, dark = REPORT.read_text().partition("prefers-color-scheme: dark")
    for page in (light, dark):
        colours = dict(re.findall(r"--(\w+): (#\w+)", page))
        for letters, fill in product(("text", "quiet", "bad"), ("page", "card")):
            assert contrast(to_rgb(colours[letters]), to_rgb(colours[fill])) >= 4.5, letters


def test_a_notebook_that_stopped_says_why_in_place_of_the_answer(tmp_path):
    error = new.new_output(
        "error", ename="ModelError", evalue=f"no such model {EVIL}", traceback=[]
    )
    path = written(tmp_path, new.new_code_cell("load()", outputs=[error]), new.new_code_cell("x"))
    write_pages(path)
    page = (tmp_path / "01_quickstart.html").read_text()
    assert "There is no answer" in page
    assert "ModelError: no such model &lt;script&gt;" in page
    write_pages(written(tmp_path))
    assert "The last cell has not printed one." in (tmp_path / "01_quickstart.html").read_text()


def test_what_is_no_notebook_is_refused_in_words(tmp_path, capsys):
    path = tmp_path / "01_quickstart.ipynb"
    for content in ("{", "[]", "{}"):
        path.write_text(content)
        with pytest.raises(SystemExit) as ended:
            main(["page", str(path)])
        assert ended.value.code == 2
        assert "01_quickstart.ipynb" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["page", str(tmp_path / "none.ipynb")])
    assert "none.ipynb" in capsys.readouterr().err
