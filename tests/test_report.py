"""The page of all results, as a browser reads it: its words and links, and that it needs no network."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from benchlib.__main__ import main
from benchlib.report import MOST_RUNS, _run_words, write_report
from benchlib.study.store import create_run
from benchmarks import reference

EMPTY = {
    "time_s": [0.0],
    "rss_gib": [0.5],
    "cuda_allocated_gib": [None],
    "cuda_reserved_gib": [None],
}
EVIL = '<script>alert("x")</script> & "quotes"'


class Page(HTMLParser):
    """The tags with attributes, and the text, of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.words, self.source = [], [], path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def measure(results, study, *, status="finished", **changes):
    """A run without requests, as a server that never answered leaves it, or a run marked as valid."""
    target = {"model": "tiny", "url": "http://127.0.0.1:1", "device": None, "dtype": None}
    target |= changes.pop("target", {})
    spec = {
        "label": None,
        "arrivals": {"kind": "closed_loop", "users": 1},
        "workload": {},
        "warmup_s": 0.0,
        "target": target,
    }
    machine = {"cpu": "A CPU", "cores": 2, "memory_gib": 4.0, "os": "Linux", "gpu": None}
    machine |= {"gpu_memory_gib": None} | changes.pop("machine", {})
    folder = create_run(
        results, study, {"spec": spec, "machine": machine, "packages": {}, "git": {}}
    )
    folder.record |= changes
    folder.finish(status, None, pd.DataFrame(EMPTY))
    return folder.path


def summarised(study, *reasons):
    rows = [
        {"run": f"r{i}", "valid": reason is None, "invalid_reason": reason}
        for i, reason in enumerate(reasons)
    ]
    pd.DataFrame(rows).to_csv(study / "summary.csv", index=False)


def executed(study, answer):
    """A notebook that ran into the folder of `study` and printed its answer."""
    study.mkdir(exist_ok=True)
    output = {"output_type": "stream", "name": "stdout", "text": [answer]}
    cell = {"cell_type": "code", "source": ["print(answer)"], "outputs": [output]}
    notebook = {"cells": [cell], "nbformat": 4, "nbformat_minor": 5, "metadata": {}}
    (study / f"06_{study.name}.ipynb").write_text(json.dumps(notebook))


def draw(study, name, alt="A line that falls."):
    (study / "figures").mkdir(exist_ok=True)
    about = PngInfo()
    about.add_itxt("Description", alt)
    Image.new("RGB", (60, 30)).save(study / "figures" / f"{name}.png", pnginfo=about)


@pytest.fixture
def results(tmp_path):
    """Three studies: one of tiny with everything, one of a URL on another machine, and one that is damaged."""
    nightly = tmp_path / "2026-11-24 night"
    for _ in range(2):
        measure(tmp_path, "load")
    (tmp_path / "load").rename(nightly)
    summarised(nightly, None, EVIL)
    for name in ("a", "b", "c", "d", "forest", "load_curve", "z"):
        draw(nightly, name, alt=f"{name}: {EVIL}")
    (nightly / "06 compare.html").write_text("executed")
    (nightly / "verdict.json").write_text(
        json.dumps({"verdict": "worse", "answer": "p95 latency 1.3 times"})
    )
    measure(
        tmp_path,
        "theirs",
        started_at="2020-01-02T03:04:05+00:00",
        target={"model": None},
        machine={"gpu": "A <GPU>"},
    )
    summarised(tmp_path / "theirs", None)
    damaged = measure(tmp_path, "damaged")
    (damaged / "run.json").write_text("{")
    (tmp_path / "README.md").write_text("not a study")
    (tmp_path / ".cache").mkdir()
    return tmp_path


@pytest.fixture
def page(results):
    return Page(write_report(results))


def test_every_link_leads_somewhere_and_none_leaves_the_disk(page, results):
    links = [
        attributes[key]
        for _, attributes in page.tags
        for key in ("src", "href")
        if key in attributes
    ]
    assert len(links) > 15
    for link in links:
        assert not link.startswith(("/", "http:", "https:", "file:")), link
        assert (results / unquote(link)).exists(), link
        assert not link.endswith("/"), "it leads to a file"
    assert {name for name, _ in page.tags}.isdisjoint({"script", "link", "iframe"})
    assert "url(" not in page.source
    assert "@import" not in page.source


def test_the_page_describes_each_study(page):
    assert [name for name, _ in page.tags].count("article") == 3
    assert (
        page.text.index("2026-11-24 night") < page.text.index("theirs") < page.text.index("damaged")
    )
    for words in (
        "tiny model, not SDXL", "1 of 2 runs valid", EVIL, "p95 latency 1.3 times", "A CPU · 2 cores", "A <GPU>",
        "2020-01-02 03:04 UTC", "model http://127.0.0.1:1", "1 of 1 run valid", "2 runs",
    ):  # fmt: skip
        assert words in page.text, words
    assert page.text.count("tiny model, not SDXL") == 1


def test_one_picture_is_large_and_the_others_are_folded_each_with_its_own_alt_text(page):
    pictures = page.all("img")
    names = [picture["alt"].split(":")[0] for picture in pictures]
    assert names == ["forest", "load_curve", "a", "b", "c", "d", "z"]
    assert len([tag for tag in page.all("a") if tag.get("class") == "large"]) == 1
    assert "6 more pictures" in page.text
    assert pictures[0]["alt"] == f"forest: {EVIL}"
    assert (pictures[0]["width"], pictures[0]["height"]) == ("60", "30")


def test_the_questions_come_first_and_what_serves_others_is_folded(results):
    for study in ("compare-first", "settings", "quickstart"):
        measure(results, study)
        summarised(results / study, None)
    page = Page(write_report(results))
    places = [
        page.text.index(words)
        for words in (
            "The questions, in the notebooks' order",
            "Does it work here? quickstart",
            "Which settings should I run? settings",
            "Other studies, the newest first",
            "2026-11-24 night",
            "Made to be compared by notebook 06",
            "compare-first",
        )
    ]
    assert places == sorted(places)
    assert [tag["class"] for tag in page.all("details") if "class" in tag] == ["section"]


def test_the_card_of_notebook_06_shows_the_studies_that_it_compared(results):
    measure(results, "compare-slower")
    draw(results / "compare-slower", "forest")
    executed(results / "compare", "compare-slower against compare-first: worse\n- median latency")
    page = Page(write_report(results))
    start = page.text.index("Did it get worse? compare")
    card = page.text[start : page.text.index("Other studies")]
    assert "compare-slower against compare-first: worse" in card
    assert "with the studies that it compared" in card
    assert "broken" not in card
    pictures = [tag["src"] for tag in page.all("img")]
    assert pictures[0] == "compare-slower/figures/forest.png"
    executed(results / "compare", "2026-11-24 against 2026-11-23: better")
    named = Page(write_report(results))
    assert [tag["src"] for tag in named.all("img")].count("compare-slower/figures/forest.png") == 1


def test_a_reference_shows_its_pictures_and_is_not_called_broken(results):
    """It may keep pictures at its top, pictures of a study, or runs two levels down."""
    reference_folder = results / "reference-h100"
    (reference_folder / "load").mkdir(parents=True)
    draw(reference_folder, "ladder")
    draw(reference_folder / "load", "hockey_stick")
    (reference_folder / "latency.jsonl").write_text("{}")
    (reference_folder / "about.txt").write_text("Measured on 2026-11-26 on one H100.")
    measure(reference_folder / "ten-minutes", "at-0.95")
    page = Page(write_report(results))
    for words in (
        "Measured elsewhere, as a reference: H100",
        "How many people can it serve? load",
        "ten-minutes/at-0.95",
    ):
        assert words in page.text, words
    assert "it holds no run" not in page.text
    assert "reference-h100 Measured on 2026-11-26 on one H100." in page.text
    for link in (
        "latency.jsonl",
        "figures/ladder.png",
        "load/figures/hockey_stick.png",
        "ten-minutes/at-0.95/",
    ):
        assert f'"reference-h100/{link}' in page.source, link
        assert (results / "reference-h100" / link).exists()


def test_a_reference_says_when_and_where_it_was_measured_and_with_which_model(results):
    place = results / "reference-cpu" / "load"
    place.mkdir(parents=True)
    row = {"run": "20261126-210929-users-1", "started_at": "2026-11-26T21:09:29", "model": "tiny"}
    row |= {"throughput_images_per_s": 20.74, "valid": True, "invalid_reason": None}
    pd.DataFrame([row]).to_csv(place / "summary.csv", index=False)
    draw(place, "hockey_stick")
    measure(results / "reference-cpu", "quickstart", machine={"cpu": "Their CPU"})
    text = Page(write_report(results)).text
    start = text.index("How many people can it serve?")
    words = "load 2026-11-26 21:09 UTC · Their CPU · 2 cores tiny model, not SDXL 1 of 1 run valid"
    assert text[start:].startswith(f"How many people can it serve? {words}")
    (place / "summary.csv").write_text("run\nx")
    assert "its summary.csv can't be read" in Page(write_report(results)).text


def test_a_rate_of_nine_digits_in_the_name_of_an_older_run_is_short_on_the_page():
    names = {
        "20261126-210929-open-4.79801478": "open-4.8",
        "20261126-210929-open-4.79801478-2": "open-4.8-2",
        "20261126-210929-users-16": "users-16",
        "20261126-210929-fp16_v1.2": "fp16_v1.2",
    }
    assert [_run_words({"run": name}) for name in names] == list(names.values())


def test_a_card_has_the_key_figures_of_its_last_runs(results):
    measure(results, "load")
    rows = []
    for number in range(MOST_RUNS + 2):
        row = {"run": f"20261126-210929-users-{number}", "valid": number > 2}
        row |= {"throughput_images_per_s": 20.7407, "latency_p95_s": None, "invalid_reason": None}
        row["suspect_reason"] = "others took 1.5 of 2 cores" if number == 4 else None
        rows.append(row)
    pd.DataFrame(rows).to_csv(results / "load/summary.csv", index=False)
    page = Page(write_report(results))
    assert "run images/s valid users-2 20.7 no users-3 20.7 yes users-4" in page.text
    assert "users-4 20.7 yes, but busy users-5 20.7 yes" in page.text
    assert "2 earlier in summary.csv" in page.text
    assert page.source.count("<td>") == 3 * MOST_RUNS
    assert 'id="load"' in page.source, "a notebook's link leads here"


def test_a_folder_with_pictures_alone_is_not_broken(results):
    (results / "mine").mkdir()
    draw(results / "mine", "sketch")
    page = Page(write_report(results))
    assert "pictures alone: the runs are not in this folder" in page.text
    assert "it holds no run" not in page.text


def test_a_damaged_run_is_named_and_the_others_are_shown(results):
    damaged = measure(results, "theirs")
    summarised(results / "theirs", None, None)
    record = json.loads((damaged / "run.json").read_bytes())
    del record["spec"]["arrivals"]
    (damaged / "run.json").write_text(json.dumps(record))
    page = Page(write_report(results))
    assert f"left out: {damaged.name}: its run.json lacks spec.arrivals" in page.text
    assert page.text.count("broken:") == 1, "that is the study without a whole run"
    assert "A <GPU>" in page.text


def test_a_broken_study_says_why_and_stops_nothing(results):
    (results / "2026-11-24 night" / "summary.csv").unlink()
    (results / "theirs" / "verdict.json").write_text("[]")
    assert "TypeError" in Page(write_report(results)).text
    (results / "empty").mkdir()
    draw(results / "damaged", "works")
    (results / "damaged" / "figures" / "no_picture.png").write_text("text")
    measure(results, "theirs")
    (results / "theirs" / "verdict.json").unlink()
    page = Page(write_report(results))
    assert "is going on, or was killed" in page.text
    assert page.text.count("broken:") == 3
    assert "run.json is damaged: Expecting property name" in page.text
    assert "it holds no run" in page.text
    assert "no_picture.png can't be read" in page.text
    assert "damaged/figures/works.png" in page.source, "what can be shown is"


def test_it_suits_a_phone_and_the_dark(page):
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all(
        "meta"
    )
    assert "prefers-color-scheme: dark" in page.source
    assert "display: grid" in page.source
    assert "overflow-x: auto" in page.source, "a wide table scrolls in its own box"


def test_the_command_writes_it_and_says_where(results, capsys, tmp_path_factory):
    assert main(["report", "--results", str(results)]) == 0
    assert capsys.readouterr().out.strip() == str(results / "index.html")
    with pytest.raises(SystemExit) as ended:
        main(["report", "--results", str(results / "nowhere")])
    assert ended.value.code == 2
    assert "is not a folder" in capsys.readouterr().err
    assert "There is no study yet." in Page(write_report(tmp_path_factory.mktemp("none"))).text


def test_it_loads_nothing_heavy():
    code = "import sys, benchlib.report; print({'torch', 'pandas', 'matplotlib', 'numpy'} & {*sys.modules})"
    assert (
        subprocess.check_output([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).strip()
        == b"set()"
    )


def test_what_is_kept_for_the_readme_is_small_and_keeps_its_words(results, tmp_path):
    kept = tmp_path / "kept"
    (kept / "2026-11-24 night").mkdir(parents=True)
    (kept / "2026-11-24 night" / "old.png").touch()
    (kept / "an older study").mkdir()
    (kept / "an older study" / "summary.csv").touch()
    (kept / "figures").mkdir()
    assert 0 < reference.keep(results, kept) < reference.LIMIT_MB
    assert {path.name for path in (kept / "2026-11-24 night").iterdir()} == {
        "figures",
        "summary.csv",
        "verdict.json",
    }
    assert not (kept / "an older study").exists(), "the new set has none of this name"
    assert (kept / "figures").exists(), "it is no study"
    with Image.open(kept / "2026-11-24 night/figures/forest.png") as picture:
        assert (picture.mode, picture.size, picture.text["Description"]) == (
            "P",
            (60, 30),
            f"forest: {EVIL}",
        )
