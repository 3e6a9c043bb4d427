"""The benchmark of single kernels, with small shapes and plain torch."""

import argparse
import json
import math

import torch

from benchmarks import kernel_tries


def test_every_section_measures_plain_torch_on_a_cpu(tmp_path):
    lines = tmp_path / "lines.jsonl"
    for name in kernel_tries.SECTIONS:
        assert kernel_tries.main([str(lines), "--quick", "--section", name]) == 0
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert {line["section"] for line in found} == set(kernel_tries.SECTIONS)
    for line in found:
        assert line["median_us"] > 0, line
        assert line["error"] < (0.04 if "fp8" in line["section"] else 0.005), line


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
