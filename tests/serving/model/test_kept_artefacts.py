"""Compiled artefacts: kept as packs, found again, and never used if they are spoiled."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch._inductor.runtime.autotune_cache import AutotuneCache

from benchlib.serving.model.kept_artefacts import (
    MOST_PACKS,
    TORCHS_FOLDER,
    KeptArtefacts,
    _remove_own,
    describe,
    packs_folder,
    unpack,
    write_pack,
)

CPU = torch.device("cpu")


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A cache of its own, and a folder for temporary files."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("BENCHLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.delenv(TORCHS_FOLDER, raising=False)
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    return temporary


def compile_into(artefacts, **files):
    """Restores, and then writes files as inductor would."""
    found = artefacts.restore(CPU)
    for name, text in files.items():
        path = artefacts._work / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return found


def packs():
    return sorted(packs_folder(CPU).glob("*.tar"))


def test_the_next_process_finds_what_was_compiled(places):
    first, second = KeptArtefacts(), KeptArtefacts()
    assert describe(compile_into(first, fxgraph__a="graph", triton__k="kernel", b="code")) == {
        "packs": 0,
        "spoiled": 0,
    }
    (first._work / "c.lock").touch()
    first.keep(CPU)
    first.keep(CPU)
    assert len(packs()) == 1, "nothing was new the second time"
    os.environ[TORCHS_FOLDER] = str(first._work)  # as a child process inherits it
    assert describe(second.restore(CPU)) == {"packs": 1, "spoiled": 0}
    assert second.has_found_packs
    assert not first.has_found_packs
    assert second._work != first._work
    assert os.environ[TORCHS_FOLDER] == str(second._work)
    found = {path.name: path.read_text() for path in second._work.rglob("*") if path.is_file()}
    assert found == {"a": "graph", "b": "code"}
    compile_into(second, d="another shape")
    second.keep(CPU)
    assert len(packs()) == 2, "the new file alone"
    assert unpack(packs()[0], places) | unpack(packs()[1], places) == {"fxgraph/a", "b", "d"}


@pytest.mark.parametrize(
    "spoil", [lambda old: old[:-1], lambda old: b"\0" + old[1:], lambda _: b""]
)
def test_a_spoiled_pack_is_thrown_away(places, spoil, caplog):  # noqa: ARG001
    first = KeptArtefacts()
    compile_into(first, a="graph")
    first.keep(CPU)
    (pack,) = packs()
    pack.write_bytes(spoil(pack.read_bytes()))
    second = KeptArtefacts()
    assert describe(second.restore(CPU)) == {"packs": 0, "spoiled": 1}
    assert "compiled artefacts are thrown away" in caplog.text
    assert not packs()
    assert not [path for path in second._work.rglob("*") if path.is_file()]


def test_a_trial_of_the_compiler_does_not_count_as_a_model(places):
    first, second = KeptArtefacts(), KeptArtefacts()
    compile_into(first, a="negation")
    first.keep(CPU, of="trial")
    assert describe(second.restore(CPU)) == {"packs": 0, "spoiled": 0}
    assert not second.has_found_packs
    assert (second._work / "a").read_text() == "negation"
    assert places.exists()


def test_a_pack_can_not_write_outside(places, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "secret").write_text("x")
    write_pack(work, ["../secret"], packs_folder(CPU))
    artefacts = KeptArtefacts()
    (tmp_path / "secret").unlink()
    assert artefacts.restore(CPU).spoiled == 1
    assert not (places / "secret").exists()


def test_torchs_own_folder_stays_if_the_user_has_set_it(places, monkeypatch, tmp_path):
    monkeypatch.setenv(TORCHS_FOLDER, str(tmp_path / "mine"))
    artefacts = KeptArtefacts()
    assert artefacts.restore(CPU) is None
    assert describe(None) == {"packs": None, "spoiled": None}
    artefacts.keep(CPU)
    assert os.environ[TORCHS_FOLDER] == str(tmp_path / "mine")
    monkeypatch.setenv(TORCHS_FOLDER, str(places / "torchinductor_someone"))  # torch's usual one
    assert artefacts.restore(CPU) is not None


def test_the_folder_of_a_killed_process_is_removed(places):
    abandoned = places / "benchlib-artefacts-abandoned"
    abandoned.mkdir()
    running = KeptArtefacts()
    running.restore(CPU)
    assert not abandoned.exists()
    KeptArtefacts().restore(CPU)
    assert running._work.exists()


def test_the_oldest_packs_are_dropped(places):
    artefacts = KeptArtefacts()
    for number in range(MOST_PACKS + 3):
        compile_into(artefacts, **{f"file{number}": str(number)})
        artefacts.keep(CPU)
    assert len(packs()) == MOST_PACKS
    assert places.exists()


def test_a_cache_that_can_not_be_written_costs_a_warning_alone(places, caplog, monkeypatch):
    artefacts = KeptArtefacts()
    compile_into(artefacts, a="graph")
    (places / "file").write_text("")
    monkeypatch.setenv("BENCHLIB_CACHE", str(places / "file"))
    artefacts.keep(CPU)
    assert "compiled artefacts are not kept" in caplog.text


def tune(source):
    """torch's own store of the configuration that it chose for the kernel in the file `source`."""
    return AutotuneCache.create({"autotune_local_cache": True}, str(source), "configurations")


def test_the_next_process_finds_the_configurations_that_torch_chose(places):
    chosen = SimpleNamespace(kwargs={"XBLOCK": 64}, num_warps=4, num_stages=1)  # as Triton's Config
    other = SimpleNamespace(kwargs={"XBLOCK": 128}, num_warps=4, num_stages=1)
    first = KeptArtefacts()
    compile_into(first, ab__kernel="source")
    tuned = first._work
    kernel = tuned / "ab" / "kernel.py"
    tune(kernel).save(chosen, 5)
    first.keep(CPU)
    _remove_own(tuned, os.getpid())

    second, third = KeptArtefacts(), KeptArtefacts()
    second.restore(CPU)
    assert tuned.readlink() == second._work
    assert tune(kernel).read_best({}, [other, chosen]) is chosen
    tune(kernel.with_name("later.py")).save(other, 5)
    second.keep(CPU)
    assert len(packs()) == 2, "what is chosen later is kept, too"
    third.restore(CPU)
    assert tuned.readlink() == second._work, "a link in use stays"
    _remove_own(second._work, os.getpid())
    assert not tuned.is_symlink(), "torch makes a folder in its place"
    tune(kernel).save(chosen, 5)
    assert not [path for path in places.iterdir() if path.is_symlink() and not path.exists()]


def test_a_link_of_a_killed_process_is_removed_with_its_folder(places):
    abandoned = places / "benchlib-artefacts-abandoned"
    abandoned.mkdir()
    link, lost = places / "benchlib-artefacts-before", places / "benchlib-artefacts-lost"
    link.symlink_to(abandoned)
    lost.symlink_to(places / "nowhere")
    KeptArtefacts().restore(CPU)
    assert not any(path.is_symlink() for path in (link, lost))
    assert not abandoned.exists()


def test_a_pack_makes_no_link_elsewhere(places, tmp_path):
    work = tmp_path / "benchlib-artefacts-elsewhere"
    work.mkdir()
    (work / "a").write_text("graph")
    write_pack(work, ["a"], packs_folder(CPU))
    (work / "a").unlink()
    work.rmdir()
    assert describe(KeptArtefacts().restore(CPU)) == {"packs": 1, "spoiled": 0}
    assert places.exists()
    assert not work.is_symlink()


COMPILES = """
import json, sys, time
import numpy as np, torch
import benchlib as bl
from torch._dynamo.utils import counters
began_s = time.monotonic()
pipe = bl.load_pipeline("tiny", device="cpu", recipe="compile-regional")
asked = bl.GenerateRequest(prompt="a", num_inference_steps=2, width=64, height=64, seed=1)
image = np.asarray(pipe.generate(asked).images[0])
found = counters["inductor"]
print(json.dumps({
    "s": time.monotonic() - began_s, "artefacts": pipe.spec["artefacts"], "sum": int(image.sum()),
    "hits": found["fxgraph_cache_hit"], "misses": found["fxgraph_cache_miss"],
}))
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_second_start_compiles_nothing(tmp_path):
    def start(number):
        temporary = tmp_path / f"temporary{number}"
        temporary.mkdir()
        changes = {"BENCHLIB_CACHE": str(tmp_path / "cache"), "TMPDIR": str(temporary)}
        environment = os.environ | changes
        environment.pop(TORCHS_FOLDER, None)
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", COMPILES],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout.splitlines()[-1])

    first, second = start(1), start(2)
    assert first["misses"] > 3
    assert first["artefacts"] == {"packs": 0, "spoiled": 0}
    assert second["artefacts"]["packs"] >= 1
    assert second["misses"] == 0
    assert second["sum"] == first["sum"]
    for pack in (tmp_path / "cache").rglob("*.tar"):
        pack.write_bytes(pack.read_bytes()[:-100])
    third = start(3)
    assert third["artefacts"]["spoiled"] >= 1
    assert third["misses"] == first["misses"]
    assert third["sum"] == first["sum"]
