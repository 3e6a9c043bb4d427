"""One card as an earlier study of notebook 03 measured it, and when such a study does not count."""

import pytest

from benchlib import machine
from benchlib.budget import Budget
from benchlib.costs import Costs
from benchlib.questions.scale import measure
from benchlib.questions.scale.measure import measure_card
from benchlib.study.store import create_run
from tests.queueing.simulated_runs import simulated_run

HOW = {"recipe": "bf16", "batching": "serial"}
SETTINGS = {"model": "sdxl", **HOW}


def keep_load_study(results, made, *, steps=20, showcase_steps=20):
    """A run of notebook 03, and what its model and its server took to start."""
    run = simulated_run("serial", rate=0.9, requests=60, steps=(steps,))
    showcase = {"width": 1024, "height": 1024, "num_inference_steps": showcase_steps}
    target = run.spec["target"] | SETTINGS | {"showcase": showcase, "device": "cpu"}
    spec = {"arrivals": run.spec["arrivals"], "workload": {"num_inference_steps": steps}}
    record = made.record(target=target, spec=spec)
    record["machine"] = machine.describe_machine("cpu")
    folder = create_run(results, "load", record)
    folder.rows_path.write_text(run.requests.to_json(orient="records", lines=True))
    folder.finish("finished", record["outcome"], made.telemetry(3))
    costs = Costs(results, ["03", *SETTINGS.values()])
    costs.record("start of the model", 20.0)
    costs.record("start of the server", 5.0)


@pytest.fixture(autouse=True)
def _measured_now(monkeypatch):
    """No card is measured in these tests: that one would be is enough."""
    monkeypatch.setattr(measure, "_card_measured_now", lambda *_: "measured now")


def card(results, **changes):
    budget = Budget(None, results=results)
    return measure_card("sdxl", budget=budget, results=results, **HOW | changes)


def test_the_run_of_notebook_03_is_taken(tmp_path, made):
    keep_load_study(tmp_path, made)
    found = card(tmp_path)
    assert found.source.startswith("run 20")
    assert found.source.endswith(" of study load")
    assert (found.startup_s, found.steps, found.server) == (25.0, 20, None)
    assert found.calibration.images == 60
    assert found.most_images_per_s == pytest.approx(1.31, rel=0.1)
    assert found.slo.startswith("p95 < 3.")
    assert "by run 20" in str(found)
    assert "ready after" in found._repr_html_()
    assert card(tmp_path, slo="p90 < 5 s").slo == "p90 < 5 s"


def test_another_setting_machine_or_number_of_steps_does_not_count(tmp_path, made, monkeypatch):
    assert card(tmp_path) == "measured now", "there is no study"
    keep_load_study(tmp_path / "fewer", made, steps=5)
    assert card(tmp_path / "fewer") == "measured now"
    keep_load_study(tmp_path, made)
    assert card(tmp_path, recipe="baseline") == "measured now"
    assert card(tmp_path, replicas=2) == "measured now", "real cards are to confirm it"
    monkeypatch.setattr(measure, "machine_name", lambda: "another CPU, 1 cores")
    assert card(tmp_path) == "measured now"


def test_a_bad_promise_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"^slo"):
        card(tmp_path, slo="fast")
