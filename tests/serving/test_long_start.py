"""A long start tells what it does, and a quick one nothing. No test waits for the usual interval."""

import gc
import re
import time
import weakref
from contextlib import closing, suppress

import pytest

from benchlib.serving import long_start
from benchlib.serving.engine.engine import Engine
from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.long_start import wait_for_start
from benchlib.serving.model import loading
from benchlib.serving.model.models import load_model
from benchlib.serving.model.pipeline import SDXLPipeline
from benchlib.serving.model.torch_thread import long_torch_call, on_torch_thread
from benchlib.serving.replicas.fleet import Fleet
from benchlib.serving.schemas import GenerateRequest
from benchlib.serving.server import serve
from benchmarks.fakes.fake_pipeline import FakePipeline
from benchmarks.fakes.replicas import ScriptedReplica


def wait_until(holds):
    ends_s = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < ends_s
        time.sleep(0.001)


def in_order(lines):
    """The lines without their seconds, each once in a row."""
    words = [re.sub(r",? (after )?\d+ s( so far)?$", "", line) for line in lines]
    return [word for word, before in zip(words, [None, *words], strict=False) if word != before]


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(long_start, "TELL_EVERY_S", 0.002)


class Compiled(FakePipeline):
    """A step takes until somebody was told what the start does."""

    compiled = True

    def __init__(self, was_told):
        super().__init__()
        self.was_told = was_told

    def step(self, works, *, rows=None):
        wait_until(self.was_told)
        return super().step(works, rows=rows)

    def keep_artefacts(self):
        pass


@pytest.mark.usefixtures("often")
def test_a_start_that_compiles_tells_each_bucket():
    lines = []

    def was_told():
        return any(engine.doing in line for line in lines)

    def load():
        wait_until(was_told)
        return Compiled(was_told)

    engine = Engine(load, EngineOptions(max_batch_size=2))
    engine.start()
    try:
        wait_for_start(engine, "sdxl", lines.append)
    finally:
        engine.stop()
    first_told = list(dict.fromkeys(in_order(lines)))
    assert first_told == [
        "sdxl: loading the model",
        "sdxl: compiling the UNet for 2 rows (1 of 2)",
        "sdxl: measuring 2 rows at 64x64",
        "sdxl: compiling the UNet for 4 rows (2 of 2)",
        "sdxl: measuring 4 rows at 64x64",
        "sdxl: ready",
    ]
    assert re.fullmatch(r"sdxl: loading the model, \d+ s so far", lines[0])
    assert re.fullmatch(r"sdxl: ready after \d+ s", lines[-1])


def test_a_start_keeps_what_each_batch_has_compiled():
    """A start that is killed while it compiles for four rows has kept what it compiled for two."""
    happened = []

    class Keeping(FakePipeline):
        compiled = True

        def step(self, works, *, rows=None):
            happened.append(rows)
            return super().step(works, rows=rows)

        def keep_artefacts(self):
            happened.append("kept")

    engine = Engine(Keeping, EngineOptions(max_batch_size=2))
    engine.start()
    try:
        wait_for_start(engine, "sdxl", lambda _: None)
    finally:
        engine.stop()
    between = happened[happened.index(2) : happened.index(4)]
    assert "kept" in between


@pytest.mark.usefixtures("often")
def test_a_fleet_tells_how_many_replicas_are_ready():
    replicas = [ScriptedReplica("0"), ScriptedReplica("1")]
    rising = iter(replicas)
    fleet = Fleet(replicas, EngineOptions(batching="serial"))
    lines = []

    def tell(line):
        lines.append(line)
        if "so far" in line:
            next(rising).rise()

    fleet.start()
    try:
        wait_for_start(fleet, "sdxl", tell)
    finally:
        fleet.stop(drain_s=0.0)
    assert in_order(lines) == [
        "2 replicas: 0 of 2 are ready",
        "2 replicas: 1 of 2 are ready",
        "2 replicas: ready",
    ]


@pytest.mark.usefixtures("often")
def test_a_start_that_fails_is_not_called_ready():
    lines = []

    def load():
        wait_until(lambda: lines)
        raise ValueError("no such model")

    engine = Engine(load)
    engine.start()
    wait_for_start(engine, "sdxl", lines.append)
    assert str(engine.failure) == "no such model"
    assert in_order(lines) == ["sdxl: loading the model"]


@pytest.mark.usefixtures("often")
def test_serve_prints_what_a_long_start_does(capsys):
    said = []

    def was_told():
        said.append(capsys.readouterr().out)
        return "so far" in "".join(said)

    with serve(Compiled(was_told), name="long", max_batch_size=2):
        said.append(capsys.readouterr().out)
    lines = "".join(said).splitlines()
    assert all(line.startswith("fake: ") for line in lines)
    assert re.fullmatch(r"fake: ready after \d+ s", lines[-1])


def test_serve_prints_nothing_at_a_quick_start(capsys):
    with serve(FakePipeline(), name="quick"):
        assert capsys.readouterr().out == ""


def test_a_load_without_a_server_prints_what_it_does_and_returns_the_same(capsys, monkeypatch):
    said = []

    def slow_load(*args, **options):
        wait_until(lambda: said.append(capsys.readouterr().out) or "so far" in "".join(said))
        return load_model(*args, **options)

    monkeypatch.setattr(loading, "load_model", slow_load)
    monkeypatch.setattr(long_start, "TELL_EVERY_S", 0.002)
    with closing(loading.load_pipeline("tiny", device="cpu")) as pipe:
        assert isinstance(pipe, SDXLPipeline)
    lines = "".join([*said, capsys.readouterr().out]).splitlines()
    assert in_order(lines) == ["tiny: loading the model", "tiny: loading the model took"]
    assert re.fullmatch(r"tiny: loading the model, \d+ s so far", lines[0])
    assert re.fullmatch(r"tiny: loading the model took \d+ s", lines[-1])


def test_quick_loads_and_images_print_nothing(capsys):
    request = GenerateRequest(prompt="a", num_inference_steps=1, width=64, height=64)
    with closing(loading.load_pipeline("tiny", device="cpu")) as pipe:
        pipe.generate(request)
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("often")
def test_a_long_call_that_fails_raises_its_error_and_keeps_nothing(capsys):
    class Held:
        """Stands for a model that an error's traceback holds."""

    alive = []

    def fail():
        held = Held()
        alive.append(weakref.ref(held))
        wait_until(lambda: "so far" in capsys.readouterr().out)
        raise ValueError("no such file")

    gc.disable()  # reference counts alone must free it
    try:
        with suppress(ValueError):
            long_torch_call("tiny: loading the model", fail)
        assert [ref() for ref in alive] == [None]
    finally:
        gc.enable()
    assert "took" not in capsys.readouterr().out


@pytest.mark.usefixtures("often")
def test_a_long_call_on_the_torch_thread_itself_leaves_the_words_to_who_waits(capsys):
    def slow():
        time.sleep(0.05)  # many intervals
        return 7

    assert on_torch_thread(long_torch_call, "tiny: loading the model", slow) == 7
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("often")
def test_a_server_that_loads_by_name_tells_its_start_once(capsys):
    with serve("tiny", device="cpu", name="by-name", max_batch_size=2):
        lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"tiny: ready after \d+ s", lines[-1])
    assert not any(" took " in line for line in lines)
