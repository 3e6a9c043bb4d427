"""benchmarks/peers.py: sides and shapes by name, rounds in turn, and one real process."""

import argparse
import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.peers import Shape, Side


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("text", ["ours", "ours=fast", "ours=theirs:fast", "ours=ours:"])
def test_a_side_without_a_kind_or_a_recipe_is_refused(text):
    with pytest.raises(ValueError, match="is not NAME=KIND:RECIPE"):
        Side.parse(text)


def test_a_folder_without_our_code_is_refused(tmp_path):
    """Python would find the code of today instead: the side would be compared with itself."""
    with pytest.raises(ValueError, match="has no folder benchlib"):
        Side.parse(f"old=ours:bf16@{tmp_path}")


def test_sides_and_shapes_are_read(tmp_path):
    (tmp_path / "benchlib").mkdir()
    side = Side.parse(f"today=ours:bf16+fp8@{tmp_path}")
    assert (side.name, side.kind, side.recipe, side.folder) == (
        "today",
        "ours",
        "bf16+fp8",
        str(tmp_path),
    )
    assert Side.parse("url=url:http://host:8000/v1").recipe == "http://host:8000/v1"
    assert Shape.parse("8x20") == Shape(8, 20, 7.5)
    assert Shape.parse("1x4g0").asked(64) == {
        "n": 1,
        "steps": 4,
        "guidance": 0.0,
        "side": 64,
        "seed": 1,
    }
    with pytest.raises(ValueError, match="is not IMAGESxSTEPS"):
        Shape.parse("8")


class FakePeer:
    """Takes a known time; each side's image is one level brighter than the last side's."""

    def __init__(self, name, asked):
        self.name, self.asked = name, asked
        self.facts = {"error": "no such card"} if name == "broken" else {"load_s": 1.0}

    def ask(self, asked):
        self.asked.append(self.name)
        if "kernels" in asked:
            return {"kernels": [["gemm", 1, 2.0]]}
        if self.name == "small" and asked["n"] > 1:
            return {"error": "OutOfMemoryError: too many"}
        if "save" in asked:
            np.save(asked["save"], np.full((asked["n"], 4, 4, 3), len(self.name), np.uint8))
        return {"seconds": len(self.name) * asked["n"], "allocated_gib": 1.0, "digest": "0"}


def test_sides_take_turns_and_an_error_leaves_out_one_side(tmp_path, monkeypatch):
    asked = []

    @contextmanager
    def started(side, _options, _changes=None):
        yield FakePeer(side.name, asked)

    monkeypatch.setattr(peers, "started", started)
    path = tmp_path / "lines.jsonl"
    sides = ["one=ours:a", "small=hf:b", "broken=stock:c"]
    arguments = [str(path), *(f"--side={side}" for side in sides), "--shape=1x2", "--shape=2x2"]
    assert peers.main([*arguments, "--rounds=3", "--kernels=one"]) == 0
    lines = read(path)
    assert asked[6:12] == ["one", "small", "small", "one", "one", "small"]
    found = [
        (line["case"], line["n"], line["value"])
        for line in lines
        if line["what"] == "median_image_s"
    ]
    assert found == [("one", 1, 3.0), ("small", 1, 5.0), ("one", 2, 3.0)]
    left_out = [line for line in lines if line["what"] == "left out"]
    assert [(line["case"], line["n"]) for line in left_out] == [("small", 2)]
    (psnr,) = [line for line in lines if line["what"] == "psnr_db"]
    assert (psnr["case"], psnr["to"]) == ("small", "one")
    assert psnr["value"] == pytest.approx(10 * np.log10(255**2 / 4))
    assert any(line["what"] == "kernels" and line["value"] for line in lines)


def test_each_start_has_the_same_empty_folder_and_bytecode(tmp_path, monkeypatch):
    folders, written = [], []

    @contextmanager
    def started(_side, _options, changes, *_more):
        folder = Path(changes["TMPDIR"])
        assert not list(folder.iterdir())
        assert changes["PYTHONDONTWRITEBYTECODE"] == ""
        (folder / "left behind").touch()
        folders.append(folder)
        yield FakePeer("one", [])

    monkeypatch.setattr(peers, "started", started)
    monkeypatch.setattr(peers, "write_bytecode", lambda side: written.append(side.name))
    path = tmp_path / "lines.jsonl"
    assert peers.main([str(path), "--start=one=ours:a"]) == 0
    assert len(folders) == 2
    assert folders[0] == folders[1]
    assert written == ["one"], "before the first start"
    assert [line["case"] for line in read(path)] == ["one, cold", "one, warm"]


def test_bytecode_is_written_even_where_the_environment_forbids_it(tmp_path, monkeypatch):
    (tmp_path / "benchlib").mkdir()
    (tmp_path / "plain.py").write_text("")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(peers, "IMPORTS", "import plain")
    peers.write_bytecode(Side.parse(f"one=ours:a@{tmp_path}"))
    assert list((tmp_path / "__pycache__").glob("plain.*.pyc"))


def test_a_real_process_makes_an_image_and_tells_an_error(tmp_path):
    options = argparse.Namespace(model="tiny", device="cpu")
    changes = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    stock = Side.parse("stock=stock:baseline")
    profile = tmp_path / "stock.txt"
    with peers.started(stock, options, changes, "--profile", str(profile)) as peer:
        parts_s = peer.facts["load_parts_s"]
        assert list(parts_s) == ["check", "networks", "finite", "recipes"]
        assert peer.facts["load_s"] >= sum(parts_s.values())
        assert peer.facts["packages"]["torch"]
        asked = Shape(2, 2, 7.5).asked(64)
        answer = peer.ask(asked | {"save": str(tmp_path / "image.npy")})
        assert answer["seconds"] > 0
        assert np.load(tmp_path / "image.npy").shape == (2, 64, 64, 3)
        rows = [line.split(maxsplit=2) for line in profile.read_text().splitlines()]
        assert all(float(total_s) >= float(own_s) for total_s, own_s, _ in rows)
        assert any(name.endswith("load_model") for *_, name in rows)
        assert "divisible" in peer.ask(asked | {"side": 65})["error"]


def test_a_process_that_ends_is_an_answer_in_words():
    options = argparse.Namespace(model="/no/such/model", device="cpu")
    with peers.started(
        Side.parse("ours=ours:baseline"), options, {"PYTHONWARNINGS": "ignore"}
    ) as peer:
        assert peer.facts == {"error": "the process has ended"}
        assert peer.ask({}) == {"error": "the process has ended"}
