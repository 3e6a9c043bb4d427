"""The pinned packages, and the promises of the Makefile to a stranger."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RANGES = [
    Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
]
PIN_LINES = [
    line
    for line in (ROOT / "requirements.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
PINS = {canonicalize_name(pin.name): pin for pin in map(Requirement, PIN_LINES)}
# In the file of pip, a package is one line once its broken lines are joined.
HASHED_LINES = [
    line
    for line in (ROOT / "requirements-hashed.txt").read_text().replace("\\\n", " ").splitlines()
    if line and not line.lstrip().startswith("#")
]
HASHED = {
    canonicalize_name(pin.name): pin
    for pin in (Requirement(line.partition(" --hash=")[0]) for line in HASHED_LINES)
}
TARGETS = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()


def version_of(pin):
    (specifier,) = pin.specifier
    assert specifier.operator == "=="
    return specifier.version


# ---- the pinned set


def test_the_pins_are_one_version_each_and_nothing_else():
    assert len(PINS) == len(PIN_LINES), "a package twice"
    for pin in PINS.values():
        assert version_of(pin)
        assert pin.url is None
    assert version_of(PINS["torch"]) == "2.13.0"


@pytest.mark.parametrize("wanted", RANGES, ids=lambda wanted: wanted.name)
def test_each_dependency_is_pinned_within_its_range(wanted):
    assert wanted.specifier.contains(version_of(PINS[canonicalize_name(wanted.name)]))


def test_what_is_installed_is_what_is_pinned():
    for name, pin in PINS.items():
        if name != "torch" and (pin.marker is None or pin.marker.evaluate()):
            assert metadata.version(name) == version_of(pin), name
    (torch,) = [wanted for wanted in RANGES if wanted.name == "torch"]
    assert torch.specifier.contains(metadata.version("torch"), prereleases=True)


def test_each_hashed_package_has_the_pinned_version():
    for name, pin in PINS.items():
        if name != "torch":
            assert version_of(HASHED[name]) == version_of(pin), f"{name}: run make lock"
    assert "torch" not in HASHED, "its builds differ by index"
    # The others are for one Python or one operating system.
    for name in HASHED.keys() - PINS.keys():
        assert HASHED[name].marker is not None, f"{name}: pin it in requirements.txt"


def test_each_hashed_package_has_a_hash_and_no_address():
    assert len(HASHED) == len(HASHED_LINES), "a package twice"
    for line in HASHED_LINES:
        requirement, *hashes = line.split(" --hash=")
        assert hashes, f"{requirement}: run make lock"
        for given in hashes:
            assert re.fullmatch(r"sha256:[0-9a-f]{64}\s*", given), line
    assert "://" not in "".join(HASHED_LINES)


def test_what_is_installed_has_all_that_it_needs():
    for name in HASHED.keys() & {canonicalize_name(one.name) for one in metadata.distributions()}:
        for needed in map(Requirement, metadata.requires(name) or []):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                there = metadata.version(needed.name)
                assert needed.specifier.contains(there, prereleases=True), f"{name}: {needed}"


def test_the_conda_environment_is_the_same_set():
    *conda, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert pip == {"pip": ["-r requirements.txt", "-e ."]}
    python, tool = map(Requirement, conda)
    assert (python.name, tool.name) == ("python", "pip")
    offered = {f"3.{minor}" for minor in range(30) if python.specifier.contains(f"3.{minor}")}
    assert "3.11" in offered
    assert offered <= set(SpecifierSet(PROJECT["requires-python"]).filter(offered))


# ---- the Makefile

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")


class Copy:
    """A copy of the project's files that `make` reads; a test makes up its .venv."""

    def __init__(self, folder):
        self.folder, self.bin, self.installed = folder, folder / ".venv/bin", folder / "installed"
        for name in ("Makefile", "requirements.txt", "requirements-hashed.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, folder)

    def make(self, *arguments, **environment):
        # Without the variables of a `make test` that runs these tests.
        environment |= {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "PYTHONPATH": str(self.installed),
        }
        command = ["make", f"PYTHON={sys.executable}", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True
        )

    def fake_venv(self, torch=None):
        """Makes a Python whose one package is a torch of that version, and a pip that logs its arguments."""
        self.bin.mkdir(parents=True)
        self.script(self.bin / "python", f'exec {sys.executable} -S "$@"')
        self.script(self.bin / "pip", f'echo "$@" >> {self.folder}/pip.log')
        if torch:
            (self.installed / "torch.dist-info").mkdir(parents=True)
            (self.installed / "torch.dist-info/METADATA").write_text(
                f"Name: torch\nVersion: {torch}\n"
            )

    @staticmethod
    def script(path, body):
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def pip_log(self):
        """The calls of pip so far, each a list of words."""
        return [line.split() for line in (self.folder / "pip.log").read_text().splitlines()]


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path)


HASHED_SET = [
    "install",
    "--quiet",
    "--no-deps",
    "--require-hashes",
    "-r",
    "requirements-hashed.txt",
]
ITSELF = ["install", "--quiet", "--no-deps", "--no-build-isolation", "-e", "."]


@needs_make
@pytest.mark.parametrize("target", [target for target in TARGETS if target != "lock"])
def test_each_target_sets_up_first_and_only_once(copy, target):
    fresh = copy.make("-n", target)
    assert fresh.returncode == 0, fresh.stderr
    assert " ".join(HASHED_SET) in fresh.stdout
    assert " ".join(ITSELF) in fresh.stdout
    copy.fake_venv()
    (copy.folder / ".venv/ready").touch()
    again = copy.make("-n", target)
    assert again.returncode == 0, again.stderr
    assert "pip" not in again.stdout
    assert ".venv/bin/" in again.stdout


@needs_make
@pytest.mark.parametrize("torch", ["2.13.0+cpu", "2.13.0", "2.6.0+cu124", "3.0.0.dev20270101"])
def test_a_torch_in_range_is_kept(copy, torch):
    copy.fake_venv(torch)
    ran = copy.make("setup", "TORCH_INDEX=http://127.0.0.1:9/cpu")
    assert ran.returncode == 0, ran.stderr
    assert copy.pip_log() == [HASHED_SET, ITSELF]
    assert f"with torch {torch}" in ran.stdout
    assert copy.make("setup").returncode == 0
    assert len(copy.pip_log()) == 2, "a second set-up installs nothing"


@needs_make
@pytest.mark.parametrize("torch", [None, "2.3.1", "2.5.1+cu121", "1.13.1"])
@pytest.mark.parametrize(
    "index", [[], ["--index-url", "http://127.0.0.1:9/cpu"]], ids=["default", "index"]
)
def test_a_torch_that_is_absent_or_too_old_is_installed(copy, torch, index):
    copy.fake_venv(torch)
    ran = copy.make(".venv/ready", *(f"TORCH_INDEX={url}" for url in index[1:]))
    assert ran.returncode == 0, ran.stderr
    torch_alone = ["install", "--quiet", *index, "torch==2.13.0"]
    assert copy.pip_log() == [HASHED_SET, torch_alone, ITSELF]


@needs_make
def test_a_pip_that_fails_leaves_nothing_that_looks_ready(copy):
    copy.fake_venv()
    copy.script(copy.bin / "pip", "exit 1")
    assert copy.make("setup").returncode != 0
    assert not (copy.folder / ".venv/ready").exists()


@needs_make
def test_the_lock_is_made_by_uv_alone(copy):
    copy.script(copy.folder / "uv", f'echo "$@" > {copy.folder}/uv.log')
    tools = copy.folder / "build/lock/bin"
    tools.mkdir(parents=True)
    (copy.folder / "uv").rename(tools / "uv")
    ran = copy.make("lock")
    assert ran.returncode == 0, ran.stderr
    assert not (copy.folder / ".venv").exists()
    options = (copy.folder / "uv.log").read_text()
    assert options.startswith("pip compile requirements.txt --output-file requirements-hashed.txt")
    assert "--generate-hashes --excludes build/lock/excludes.txt" in options
    assert (copy.folder / "build/lock/excludes.txt").read_text() == "torch\n"


@needs_make
def test_an_old_python_is_refused_in_words(copy):
    old, pretend = (
        copy.folder / "python3.9",
        "import sys; sys.version_info = (3, 9, 1); exec(sys.argv[2])",
    )
    copy.script(old, f"""exec {sys.executable} -c '{pretend}' "$@" """)
    ran = copy.make("setup", f"PYTHON={old}")
    assert ran.returncode != 0
    assert "Python 3.11 or newer is needed" in ran.stderr
    assert not (copy.folder / ".venv").exists()


@needs_make
def test_a_notebook_that_fails_is_kept_and_the_others_still_run(copy):
    new = nbformat.v4
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for name, last in (
        ("01_fails", "raise RuntimeError('on purpose')"),
        ("02_works", "print(model, profile)"),
    ):
        parameters = new.new_code_cell(
            "model = profile = results_dir = None", metadata={"tags": ["parameters"]}
        )
        cells = [
            parameters,
            new.new_code_cell("print('so far', 'so good')"),
            new.new_code_cell(last),
        ]
        nbformat.write(
            new.new_notebook(cells=cells, metadata=kernel), copy.folder / f"{name}.ipynb"
        )
    copy.bin.mkdir(parents=True)
    for name in ("python", "papermill"):
        copy.script(copy.bin / name, f'exec {BIN / name} "$@"')
    copy.installed.mkdir()
    (copy.installed / "benchlib").symlink_to(ROOT / "benchlib")
    (copy.folder / ".venv/ready").touch()
    ran = copy.make("workbook", "NOTEBOOKS=01_fails.ipynb 02_works.ipynb", "PROFILE=full")
    assert ran.returncode != 0
    assert "FAILED: 01_fails.ipynb: RuntimeError: on purpose" in ran.stdout
    assert "Executing" not in ran.stdout + ran.stderr, "the log is for its file"
    assert "so far so good" in (copy.folder / "results/fails/01_fails.log").read_text()
    assert "FAILED: 02_works.ipynb" not in ran.stdout
    results = copy.folder / "results"
    failed = (results / "fails/01_fails.ipynb").read_text()
    assert "so far so good" in failed
    assert "on purpose" in failed
    page = (results / "fails/01_fails.html").read_text()
    assert "so far so good" in page
    without_code = (results / "fails/01_fails-without-code.html").read_text()
    assert "so far so good" in without_code
    assert "results_dir = " not in without_code
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=.?http", page), "it needs no network"
    assert "tiny full" in (results / "works/02_works.ipynb").read_text()
    for name in ("fails/01_fails", "works/02_works"):
        assert re.search(rf"^Look at \S*/{name}\.html", ran.stdout, re.MULTILINE)


@needs_make
def test_the_lab_works_on_copies_and_keeps_those_that_are_there(copy):
    copy.fake_venv()
    (copy.folder / ".venv/ready").touch()
    copy.script(copy.bin / "jupyter", f'echo "$@" >> {copy.folder}/jupyter.log')
    (copy.folder / "notebooks").mkdir()
    for name in ("01_first", "02_second"):
        (copy.folder / f"notebooks/{name}.ipynb").write_text("of the repository")
    mine = copy.folder / "my_notebooks/01_first.ipynb"
    mine.parent.mkdir()
    mine.write_text("my own work")
    os.utime(mine, (1, 1))
    ran = copy.make("lab", "LAB=--no-browser --port 8899")
    assert ran.returncode == 0, ran.stderr
    assert mine.read_text() == "my own work"
    assert "my_notebooks/01_first.ipynb is older than notebooks/01_first.ipynb" in ran.stdout
    assert (mine.parent / "02_second.ipynb").read_text() == "of the repository"
    options = (copy.folder / "jupyter.log").read_text().split()
    as_root = ["--allow-root"] if os.getuid() == 0 else []
    assert options == ["lab", *as_root, "--no-browser", "--port", "8899", "my_notebooks"]
