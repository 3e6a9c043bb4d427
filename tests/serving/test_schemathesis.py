"""Random requests, valid and invalid by the server's own description, get declared answers.

Schemathesis makes them from /openapi.json: it tries each bound of each field (coverage), draws
bodies (fuzzing), and sends an answer's parts to other routes (stateful). The model is a fake, so
that the time goes into HTTP.
"""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from benchlib.serving.server import serve
from benchmarks.fakes.fake_pipeline import FakePipeline

PROGRAM = Path(sys.executable).with_name("schemathesis")
CONFIG = Path(__file__).with_name("schemathesis.toml")
LIMITS = {"max_pixel_steps": 2048 * 1024 * 100, "api_key": "open-sesame"}
WITH_KEY = {"Authorization": "Bearer open-sesame"}


@pytest.fixture
def pipeline():
    pipeline = FakePipeline()
    pipeline.most_pixels = 1024 * 1024
    return pipeline


def send_cases(server, folder, *options):
    """Schemathesis' own report, after a run that found no fault."""
    place = folder / "report.json"
    command = [PROGRAM, "--config-file", CONFIG, "run", f"{server.url}/openapi.json", *options]
    command += [f"--header={name}: {value}" for name, value in WITH_KEY.items()]
    report_to = ["--report", "json", "--report-json-path", place]
    ran = subprocess.run([*command, *report_to], cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads(place.read_text())
    assert report["complete"]
    assert not report["failures"] + report["errors"]
    assert report["operations"]["tested"] == report["operations"]["total"]
    assert httpx.get(f"{server.url}/ready", headers=WITH_KEY).status_code == 200
    return report


def count_images(server, route):
    """The images that a route has made, by the server's own count."""
    line = f'benchlib_images_total{{route="{route}"}} '
    [count] = [
        text.removeprefix(line)
        for text in httpx.get(f"{server.url}/metrics", headers=WITH_KEY).text.splitlines()
        if text.startswith(line)
    ]
    return float(count)


def test_hundreds_of_cases(pipeline, tmp_path):
    with serve(pipeline, name="schemathesis", **LIMITS) as server:
        report = send_cases(
            server, tmp_path, "--phases", "coverage,fuzzing", "--max-examples", "10"
        )
        assert report["test_cases"]["generated"] > 300
        assert count_images(server, "/benchmark/generate") > 10
        assert count_images(server, "/v1/images/generations") > 10


@pytest.mark.slow
def test_five_thousand_cases_from_four_clients_of_a_full_queue(pipeline, tmp_path):
    with serve(pipeline, name="schemathesis", max_queue=4, deadline_s=0.2, **LIMITS) as server:
        report = send_cases(server, tmp_path, "--max-examples", "550", "--workers", "4")
        print(report["test_cases"])
        assert report["test_cases"]["generated"] >= 5000
        assert count_images(server, "/benchmark/generate") > 100
