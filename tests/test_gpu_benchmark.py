"""benchmarks/gpu.py: all its parts on the tiny model, and its table on planted figures."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import gpu, gpu_table


def planted(folder, *lines):
    names = ("part", "case", "what", "value")
    written = [
        json.dumps(dict(zip(names, line, strict=False)) | (line[4] if len(line) > 4 else {}))
        for line in lines
    ]
    (folder / "planted.jsonl").write_text("\n".join(written) + '\n{"part": "cut o')
    return {figure.name: figure for _, figure in gpu_table.figures(gpu_table.read(folder))}


def test_figures_are_medians_held_to_their_limits(tmp_path):
    image = {"n": 1, "steps": 20}
    found = planted(
        tmp_path,
        *(("latency", "best", "image_s", s, image) for s in (0.7, 0.8, 0.95)),
        ("latency", "best", "image_s", 9.0, image | {"recompiled": 1}),
        ("latency", "best", "image_s", 1.4, image | {"steps": 30}),
        *(("throughput", "compiled", "image_s", s, {"n": n}) for s, n in ((0.6, 1), (0.5, 8), (0.4, 8))),
        *(("serving", "overhead", name, s) for name, s in (("bare", 1.0), ("engine", 1.005), ("server", 1.02))),
        ("serving", "mixed, serial", "mean_s", 4.0), ("serving", "mixed, continuous", "mean_s", 3.0),
        ("serving", "mixed, continuous", "predicted_mean_s", 2.5),
        ("latency", "bf16", "psnr_db", 40.0), ("latency", "best", "psnr_db", 38.5),
        ("throughput", "fp8", "psnr_db", 9.0),
    )  # fmt: skip
    figures = {
        "one image, 20 steps, best: s": (0.8, True),
        "one image, 30 steps, best: s": (1.4, False),
        "offline, compiled bf16: images/s": (2.25, True),
        "offline, fp8: images/s": (None, False),
        "engine over bare pipeline": (1.005, True),
        "server over bare pipeline": (1.02, False),
        "mixed: continuous over serial, mean latency": (0.75, True),
        "mixed: continuous over simulated": (1.2, False),
        "PSNR to fp32: latency, best: dB": (38.5, False),
        "PSNR to fp32: throughput, fp8: dB": (9.0, None),
    }
    for name, (value, passed) in figures.items():
        assert (found[name].value, found[name].passed) == (pytest.approx(value), passed), name
    table = gpu_table.table(tmp_path).splitlines()
    (row,) = [line for line in table if "one image, 20 steps" in line]
    assert row.split()[:2] + row.split()[-7:] == [
        "not",
        "shown",
        "0.8",
        "3",
        "0.7",
        "to",
        "0.95",
        "<=",
        "0.9",
    ]
    (row,) = [line for line in table if "engine over bare" in line]
    assert row.startswith("ok ")
    (row,) = [line for line in table if "one image, 30 steps" in line]
    assert row.startswith("MISS ")
    (row,) = [line for line in table if "offline, fp8" in line]
    assert " - " in row
    assert "ok" not in row
    assert "MISS" not in row
    assert "compiled while measured: latency, best, image_s" in table


@pytest.mark.usefixtures("idle_machine")
def test_every_part_runs_and_is_not_run_twice(tmp_path, capsys):
    arguments = [
        "--model",
        "tiny",
        "--device",
        "cpu",
        "--quick",
        "--size",
        "64",
        "--results",
        str(tmp_path),
    ]
    in_processes = {"peers", "starts"}
    parts = [f"--part={part}" for part in gpu.PARTS if part not in in_processes]
    assert gpu.main([*arguments, *parts]) == 0
    lines = gpu_table.read(tmp_path)
    ended = {line["part"] for line in lines if line["what"] == "ended"}
    assert ended == {*gpu.PARTS} - in_processes
    attention = next(line for line in lines if line["what"] == "attention")
    assert any("flash_attention_for_cpu" in name for name in attention["value"])
    found = {figure.name: figure.value for _, figure in gpu_table.figures(lines)}
    for name in (
        "ladder, fp32, 30 steps: s", "offline, eager bf16: images/s", "server over bare pipeline",
        "mixed: continuous over simulated", "PSNR to fp32: latency, bf16: dB",
    ):  # fmt: skip
        assert found[name] > 0, name
    promise = {line["what"]: line for line in lines if line["case"] in ("promise", "full batches")}
    assert promise["asked_per_s"]["value"] == pytest.approx(0.95 * promise["images_per_s"]["value"])
    assert promise["rows_p99_s"]["value"] > 0
    assert promise["rows_p99_s"]["images"] == promise["rows_p99_s"]["n"] > 0
    assert "benchlib_request_latency_seconds_bucket" in (tmp_path / "metrics.txt").read_text()
    judged = {line["case"]: line for line in lines if line["what"] == "pictures"}
    assert judged.keys() == {"fp32", "VAE tiling"}
    assert judged["fp32"]["value"] != "same"
    assert (judged["fp32"]["pairs"], judged["fp32"]["identical"]) == (8, 0)
    of_fp32 = [line for line in lines if (line["part"], line["case"]) == ("pictures", "fp32")]
    likeness = {line["prompt"]: line["value"] for line in of_fp32 if line["what"] == "pair_ssim"}
    assert len(likeness) == 8
    (mean,) = [line for line in of_fp32 if line["what"] == "mean_ssim"]
    low, high = mean["interval"]
    assert low < mean["value"] < high
    assert mean["value"] == pytest.approx(sum(likeness.values()) / 8)
    left_out = {line["case"]: line["value"] for line in lines if line["what"] == "left out"}
    assert left_out["best"] == "a quick run compiles nothing"
    assert "needs a CUDA GPU" in left_out["bf16, CUDA graphs"]
    capsys.readouterr()
    assert gpu.main([*arguments, "--part", "latency", "--part", "faithful"]) == 0
    again = gpu_table.read(tmp_path)
    for what in ("image_s", "load_s"):
        assert sum(line["what"] == what for line in again) == sum(
            line["what"] == what for line in lines
        ), what
    assert gpu.main([*arguments, "--table"]) == 0
    printed = capsys.readouterr().out
    assert "server over bare pipeline" in printed
    assert f"pictures, fp32 beside bf16: {judged['fp32']['value']}, " in printed


def test_peers_and_starts_are_handed_on_and_tabled(tmp_path, monkeypatch):
    asked = []

    def run(arguments):
        asked.append(arguments)
        path = arguments[0]
        part = path.rpartition("/")[2].removesuffix(".jsonl")
        figures = {"peers": [("ours", "image_s", 0.5), ("hf compiled", "image_s", 0.7)]}
        figures["starts"] = [("ours, cold", "ready_s", 90.0), ("ours, warm", "ready_s", 18.0)]
        with open(path, "a") as file:
            for case, what, value in figures[part]:
                line = {"part": part, "case": case, "what": what, "value": value, "n": 1}
                file.write(json.dumps(line) + "\n")

    monkeypatch.setattr(gpu, "run_peers", run)
    options = ["--model=tiny", "--device=cpu", "--quick", f"--results={tmp_path}"]
    options += ["--side=other=url:http://host/v1", "--part=peers", "--part=starts"]
    assert gpu.main(options) == 0
    assert gpu.main(options) == 0
    assert len(asked) == 2, "what has ended is not measured again"
    assert "--side=other=url:http://host/v1" in asked[0]
    assert "--start=ours=ours:baseline" in asked[1]
    found = {figure.name: figure for _, figure in gpu_table.figures(gpu_table.read(tmp_path))}
    over = found["peers, hf compiled over ours"]
    assert (over.value, over.passed) == (pytest.approx(1.4), True)
    assert (found["second start over first"].value, found["second start over first"].passed) == (
        0.2,
        True,
    )


def test_a_kept_reference_is_drawn_and_tabled(tmp_path):
    """The measured reference: the alt texts of its pictures hold the findings, and its table the verdicts."""
    folder = Path(__file__).parents[1] / "results" / "reference-h100"
    for path in folder.glob("*.jsonl"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    drawn = gpu_table.draw(tmp_path)
    assert [path.name for path in drawn] == [
        f"{name}.{kind}" for name in ("ladder", "throughput", "kernels") for kind in ("png", "svg")
    ]
    with Image.open(tmp_path / "figures" / "ladder.png") as picture:
        assert "fp32 9.02 s" in picture.info["Description"]
    verdicts = {
        line[10:66].strip(): line[:10].strip() for line in gpu_table.table(tmp_path).splitlines()
    }
    assert verdicts["one image, 20 steps, best: s"] == "ok"
    with Image.open(tmp_path / "figures" / "kernels.png") as picture:
        (line,) = [
            one
            for one in gpu_table.read(tmp_path)
            if (one["case"], one["what"]) == ("fp8", "kernels")
        ]
        parts = re.search("fp8: ([^;]*)[.]", picture.info["Description"])[1]
        assert sum(map(float, re.findall("([0-9.]+) ms", parts))) == pytest.approx(
            1000 * 0.2054 / line["n"], rel=0.01
        )
    assert verdicts["offline, fp8: images/s"] == "MISS"
    assert verdicts["server over bare pipeline"] == "not shown"


def test_nothing_measured_is_nothing_drawn(tmp_path):
    lines = [
        {"part": "latency", "case": "all", "what": "machine", "value": {"model": "sdxl-random"}}
    ]
    (tmp_path / "latency.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert gpu_table.draw(tmp_path) == []
