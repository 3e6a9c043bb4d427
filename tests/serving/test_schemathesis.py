"""Random requests, valid and invalid by the server's own description, get declared answers."""

from collections import Counter

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from benchlib.serving.server import serve

TIMEOUT_S = 60
CHECKS = [  # the first forbids every 5xx: a single client must get none
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def server(tiny):
    with serve(tiny, name="schemathesis", max_pixel_steps=128 * 128 * 8) as server:
        yield server


def send_all(server, examples):
    """The number of answers by (path, status), to `examples` checked cases of each kind.

    The cases are made for each operation.
    """
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    statuses = Counter()
    for operation in (result.ok() for result in schema.get_all_operations()):
        send(operation, GenerationMode.POSITIVE, examples if operation.body else 1, statuses)
        if operation.body:  # with the others nothing can be wrong
            send(operation, GenerationMode.NEGATIVE, examples, statuses)
    assert httpx.get(f"{server.url}/ready").status_code == 200
    return statuses


def send(operation, mode, examples, statuses):
    @settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        database=None,
        derandomize=True,
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send_one(case):
        answer = case.call(timeout=TIMEOUT_S)
        statuses[operation.path, answer.status_code] += 1
        case.validate_response(answer, checks=CHECKS)

    send_one()


def test_a_hundred_cases(server):
    statuses = send_all(server, 25)
    assert statuses.total() > 100
    assert statuses["/benchmark/generate", 422] > 0


@pytest.mark.slow
def test_a_thousand_cases(server):
    statuses = send_all(server, 300)
    print(dict(statuses))
    assert statuses.total() > 1000
    assert statuses["/v1/images/generations", 200] > 10
