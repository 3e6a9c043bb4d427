"""The app over a fleet as clients see it, with real uvicorn and HTTP.

The replicas have engines on threads of this process, or the test ends their orders. All engines of
a process share one torch thread, so a model that is held holds the others, too.
"""

import base64
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchlib.rows import Call, make_row
from benchlib.serving.door_options import DoorOptions
from benchlib.serving.engine.jobs import Cancelled
from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.image_links import ImageLinks
from benchlib.serving.replicas.fleet import Fleet
from benchlib.serving.server import Server
from benchmarks.fakes.fake_pipeline import FakePipeline
from benchmarks.fakes.replicas import ScriptedReplica, ThreadReplica
from tests.serving.test_server import SMALL, in_background, server_timing, wait_until

IMAGES = "/v1/images/generations"


@dataclass
class Served:
    """A fleet behind HTTP."""

    client: httpx.Client
    fleet: Fleet
    replicas: list

    def metric(self, name, **labels):
        page = self.client.get("/metrics").text
        samples = [
            sample for family in text_string_to_metric_families(page) for sample in family.samples
        ]
        [value] = [s.value for s in samples if s.name == name and s.labels == labels]
        return value


def with_engines(*pipelines):
    return [
        ThreadReplica(str(number), lambda pipeline=pipeline: pipeline, EngineOptions())
        for number, pipeline in enumerate(pipelines)
    ]


def make_server(fleet, door=None):
    return Server(
        lambda: fleet, host="127.0.0.1", port=0, name="fleet", log_level="warning",
        door=door or DoorOptions(), links=ImageLinks(), limits=None,
    )  # fmt: skip


@contextmanager
def served(replicas, door=None):
    fleet = Fleet(replicas, EngineOptions())
    with (
        make_server(fleet, door).start() as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield Served(client, fleet, replicas)


@contextmanager
def scripted(count, **door):
    """Replicas that hold one request each until the test ends it: it is foretold to take an hour."""
    replicas = [ScriptedReplica(str(number)) for number in range(count)]
    for replica in replicas:
        replica.rises_at_start = True
    door = {"max_queue_s": None} | door
    with served(replicas, DoorOptions(**door)) as at:
        yield at


def timing_of(answer):
    """What a run keeps of an answer's Server-Timing."""
    header = answer.headers["server-timing"]
    return make_row(Call(0, "id", {}, due_s=0.0), started_s=0.0, warmup_s=0.0, server_timing=header)


def test_an_answer_says_which_replica_made_it():
    with served(with_engines(FakePipeline(), FakePipeline())) as at:
        answer = at.client.post("/benchmark/generate", json=SMALL | {"seed": 5})
        assert answer.status_code == 200
        assert answer.headers["x-seed"] == "5"
        assert answer.json()["time_s"] == pytest.approx(0.005)
        row = timing_of(answer)
        assert (row["batch_size"], row["retries"]) == (1.0, 0)
        assert row["denoise_s"] == pytest.approx(0.003)
        assert row["replica"] in ("0", "1")
        assert at.metric("benchlib_images_total", route="/benchmark/generate") == 1
        assert at.metric("benchlib_replica_images_total", replica=row["replica"]) == 1
        assert at.metric("benchlib_batch_size_count") == 3
        assert at.metric("benchlib_batch_size_bucket", le="1.0") == 3
        spec = at.client.get("/ready").json()["spec"]
        assert (spec["replicas"], spec["model"]) == (2, "fake")


def test_replicas_write_the_files_of_openais_route():
    with served(with_engines(FakePipeline(), FakePipeline())) as at:
        answer = at.client.post(IMAGES, json={"prompt": "a", "n": 3, "seed": 7, "size": "64x64"})
        assert answer.status_code == 200
        assert answer.headers["x-seed"] == "7"
        for image in answer.json()["data"]:
            assert base64.b64decode(image["b64_json"]).startswith(b"\x89PNG")
            assert at.client.get(image["url"]).content.startswith(b"\x89PNG")
        assert server_timing(answer)[0]["image"] > 0


def test_a_fault_of_the_request_is_its_own_error_over_http():
    pipeline = FakePipeline()
    pipeline.fail_on["bad"] = ZeroDivisionError("inside the model")
    with served(with_engines(pipeline)) as at:
        failed = at.client.post("/benchmark/generate", json=SMALL | {"prompt": "bad"})
        assert failed.status_code == 500
        assert at.metric("benchlib_failures_total") == 1
        assert pipeline.calls.count(("encode", "bad")) == 1
        assert at.client.get("/ready").json()["status"] == "ready"


def test_a_replica_that_dies_costs_time_only():
    with scripted(2) as at:
        one, two = at.replicas
        answers = [in_background(at.client, name) for name in "ab"]
        wait_until(lambda: one.orders and two.orders)
        late = in_background(at.client, "late")
        wait_until(lambda: at.fleet.waiting == 1)
        [lost] = [order.request.prompt for order in one.orders.values()]
        one.die()
        ready = at.client.get("/ready")
        assert ready.status_code == 200
        said = ready.json()
        assert (said["status"], said["ready_replicas"], said["replicas"]) == ("degraded", 1, 2)
        assert said["detail"] == "replica 0: killed"
        for _ in range(3):
            two.end_all()
        rows = {
            name: timing_of(answer.result(30)) for name, answer in zip("ab", answers, strict=True)
        }
        assert rows.pop(lost)["retries"] == 1
        [survivor] = rows.values()
        assert (survivor["retries"], survivor["replica"]) == (0, "1")
        assert timing_of(late.result(30))["retries"] == 0
        assert [order.request.prompt for order in two.seen][1:] == [lost, "late"]
        assert at.metric("benchlib_replica_losses_total", replica="0") == 1
        assert at.metric("benchlib_retries_total", replica="0") == 1
        assert at.metric("benchlib_replica_ready", replica="0") == 0

        one.rise()
        assert at.metric("benchlib_replica_restarts_total", replica="0") == 1
        assert at.client.get("/ready").json()["status"] == "ready"


def test_without_a_replica_newcomers_are_told_when_to_come_back():
    with scripted(1) as at:
        [one] = at.replicas
        one.die()
        refused = at.client.post("/benchmark/generate", json=SMALL)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "no replica is left" in refused.json()["detail"]
        ready = at.client.get("/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "loading")
        assert ready.json()["ready_replicas"] == 0
        assert at.client.get("/health").status_code == 200
        assert at.metric("benchlib_refusals_total", reason="loading") == 1
        one.rise()
        assert at.client.get("/ready").status_code == 200


def test_a_request_that_loses_replicas_is_told_so_and_not_to_come_back():
    with scripted(1) as at:
        [one] = at.replicas
        answer = in_background(at.client, "culprit")
        for _ in range(3):
            wait_until(lambda: one.orders)
            one.die()
            one.rise()
        refused = answer.result(30)
        assert refused.status_code == 500
        assert "likely cause" in refused.json()["detail"]
        assert refused.headers["x-should-retry"] == "false"
        assert at.metric("benchlib_failures_total") == 1


def test_a_deadline_ends_a_request_in_the_front_and_one_inside():
    with scripted(1, deadline_s=1.0) as at:
        [one] = at.replicas
        answers = [in_background(at.client, name) for name in "ab"]
        assert [answer.result(30).status_code for answer in answers] == [504, 504]
        assert at.fleet.waiting == 0
        [order] = one.orders
        assert one.cancelled == [order]
        one.end(order, Cancelled("cancelled while running"))
        assert [order.request.prompt for order in one.seen] in (["a"], ["b"])
        assert at.metric("benchlib_cancellations_total", reason="deadline") == 2


def test_a_wait_that_is_foretold_too_long_is_refused_by_what_all_replicas_have():
    with scripted(2, max_queue_s=3000.0) as at:
        answers = [in_background(at.client, name) for name in "ab"]
        wait_until(lambda: all(replica.orders for replica in at.replicas))
        refused = at.client.post("/benchmark/generate", json=SMALL)
        assert refused.status_code == 503
        # Three steps, an encode and a decode of 1000 s each.
        assert "the wait is foretold as 5000 s" in refused.json()["detail"]
        at.replicas[1].end_all()
        answers.append(in_background(at.client, "c"))
        wait_until(lambda: at.replicas[1].orders)
        for replica in at.replicas:
            replica.end_all()
        assert [answer.result(30).status_code for answer in answers] == [200] * 3


def test_a_fleet_that_cannot_load_raises_what_went_wrong():
    def fail():
        raise OSError("no such model")

    [sound] = with_engines(FakePipeline())
    fleet = Fleet([sound, ThreadReplica("1", fail, EngineOptions())])
    with pytest.raises(OSError, match="no such model"):
        make_server(fleet).start()
    assert fleet.ended.wait(30)


def test_equal_seeds_are_equal_bytes_whoever_makes_the_image_and_after_a_loss(tiny):
    body = {
        "prompt": "a lighthouse", "size": "64x64", "num_inference_steps": 3, "seed": 11,
        "response_format": "b64_json",
    }  # fmt: skip
    with served(with_engines(tiny, tiny)) as at:
        # 1) The first replica makes it
        answer = at.client.post(IMAGES, json=body)
        parts = server_timing(answer)[0]
        total_s = parts.pop("total")
        assert total_s == pytest.approx(sum(parts.values()), rel=0.01, abs=0.001)
        first = timing_of(answer)["replica"]

        # 2) It dies in the middle of the same image, and the other makes it
        dying = at.replicas[int(first)]
        dying.hosted.engine.on_step = lambda *_: dying.kill()
        again = at.client.post(IMAGES, json=body)
        row = timing_of(again)
        assert {first, row["replica"]} == {"0", "1"}
        assert row["retries"] == 1
        assert again.json()["data"] == answer.json()["data"]

        # 3) Without a loss, too
        alone = at.client.post(IMAGES, json=body)
        assert timing_of(alone)["retries"] == 0
        assert alone.json()["data"] == answer.json()["data"]
