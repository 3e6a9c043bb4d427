"""The benchmark of single kernels, with small shapes and plain torch."""

import argparse
import json
import math
from contextlib import nullcontext
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from benchlib.serving.model import graph_memsets
from benchmarks import kernel_tries

from .serving.model.interpreted import run_on_interpreter


def test_every_section_measures_plain_torch_on_a_cpu(tmp_path):
    lines = tmp_path / "lines.jsonl"
    for name in kernel_tries.SECTIONS:
        assert kernel_tries.main([str(lines), "--quick", "--section", name]) == 0
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert {line["section"] for line in found} == set(kernel_tries.SECTIONS)
    for line in found:
        assert line["median_us"] > 0, line
        assert line["error"] < (0.04 if "fp8" in line["section"] else 0.005), line
    equal = {line["equals_recorded"] for line in found if line["section"] == "counters"}
    assert equal == {True}


def test_what_is_imported_early_is_there():
    assert set(kernel_tries.MODULES) <= set(kernel_tries.SECTIONS)
    for name in kernel_tries.MODULES.values():
        assert find_spec(name), name


def test_a_variant_that_fails_or_leaves_a_number_out_costs_itself_alone(tmp_path):
    options = argparse.Namespace(lines=tmp_path / "lines", quick=True, rounds=1, budget=60.0)
    tries = kernel_tries.Tries(options)

    def fails(_inputs):
        raise RuntimeError("no such kernel")

    def forgets(inputs):
        return inputs["answer"]

    kernel_tries.race(
        tries,
        "section",
        "case",
        lambda: {"x": torch.ones(2, 2), "answer": tries.full(2, 2)},
        {"fails": fails, "forgets": forgets, "right": lambda inputs: inputs["x"]},
        reference=lambda inputs: inputs["x"],
    )
    found = {}
    for line in (tmp_path / "lines").read_text().splitlines():
        figures = json.loads(line)
        found[figures.pop("variant")] = figures
    assert found["fails"]["left_out"] == "RuntimeError: no such kernel"
    assert math.isnan(found["forgets"]["error"])
    assert found["right"]["error"] == 0.0


INTERPRETED = """
import contextlib, io, json, pathlib, tempfile
from benchmarks import kernel_tries

lines = pathlib.Path(tempfile.mkdtemp()) / "lines.jsonl"
with contextlib.redirect_stdout(io.StringIO()):
    for name in ("rows", "text", "image-attention"):
        assert kernel_tries.main([str(lines), "--quick", "--section", name]) == 0
found = [json.loads(line) for line in lines.read_text().splitlines()]
variants = [line["variant"] for line in found if "round" not in line["case"]]
assert variants.count("rows 1, warps 4") == 2, variants
assert {"ours", "Triton"} < set(variants), variants
for line in found:
    # The interpreter cuts numbers off to fp8
    assert line["error"] < (0.1 if "fp8" in line["case"] else 0.002), line
print("all variants are right")
"""


def test_kernels_of_rows_and_of_attention_are_right_on_the_interpreter():
    run_on_interpreter(INTERPRETED, "all variants are right")


def test_the_rows_and_warps_of_a_program_are_those_of_the_variant():
    norm_rows = pytest.importorskip("benchlib.serving.model.norm_rows")
    before = norm_rows.rows_and_warps

    def call(_inputs):
        return norm_rows.rows_and_warps(1024)

    assert kernel_tries._by_program((1, 4), call, {}) == (1, 4)
    assert norm_rows.rows_and_warps is before


def test_a_graph_is_edited_before_it_is_made_and_poisoned_before_it_is_replayed(monkeypatch):
    """torch's graphs are faked, so a replay writes nothing over the poison."""
    graphs = []

    def make_graph(*, keep_graph):
        assert keep_graph
        graph = SimpleNamespace(steps=[])
        graph.instantiate = lambda: graph.steps.append("instantiate")
        graph.replay = lambda: graph.steps.append("replay")
        graphs.append(graph)
        return graph

    def edit(graph):
        graph.steps.append("edit")
        return 40

    monkeypatch.setattr(torch.cuda, "CUDAGraph", make_graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda _graph: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(graph_memsets, "memsets_to_kernels", edit)
    tries = argparse.Namespace(device="cuda", quick=False)
    calls = []

    def call():
        calls.append(1)
        return torch.zeros(2)

    found = [kernel_tries._recorded_answer(call, edits, tries) for edits in (False, True)]
    assert [replaced for _, _, replaced in found] == [0, 40]
    assert [graph.steps for graph in graphs] == [
        ["instantiate", "replay"],
        ["edit", "instantiate", "replay"],
    ]
    assert all(answer.isnan().all() for _, answer, _ in found), "poisoned before a replay"
    assert len(calls) == 2 * (2 + kernel_tries.CALLS)


def test_a_machine_without_a_gpu_is_told_so_in_words(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kernel_tries.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        kernel_tries.main([str(tmp_path / "lines.jsonl"), "--section", "counters"])
    assert "torch sees no GPU; --quick" in capsys.readouterr().err
