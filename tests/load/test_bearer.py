"""The key of a load: it is in no text, however a server repeats it."""

import html
import json
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchlib.load.arrivals import ClosedLoop
from benchlib.load.bearer import (
    HEADERS_VARIABLE,
    KEY_VARIABLE,
    bearer_header,
    check_key,
    headers_of_environment,
    without_secrets,
)
from benchlib.load.plan import LoadPlan
from benchlib.load.workload import Workload

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
VISIBLE = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
KEYS = st.text(VISIBLE, max_size=40).map("k3y#{}".format)  # no word of a plan
WORDS = st.text(st.characters(codec="ascii"), max_size=30)


def spellings(key):
    in_json = json.dumps(key)[1:-1]
    return [key, in_json, in_json.replace("/", "\\/"), quote(key, safe=""), html.escape(key)]


@UNHURRIED
@given(KEYS, WORDS, WORDS)
def test_each_spelling_of_a_key_is_blotted_out(key, before, after):
    for spelling in spellings(key):
        words = without_secrets(f"{before}{spelling}{after}", bearer_header(key))
        assert "(the key)" in words
        assert not [each for each in spellings(key) if each in words]
    assert without_secrets(before, {}) == before


@UNHURRIED
@given(KEYS)
def test_no_text_of_a_plan_has_its_key(key):
    plan = LoadPlan("http://a", ClosedLoop(1), Workload(), requests=1, headers=bearer_header(key))
    texts = [repr(plan), str(plan.to_dict())]
    again = LoadPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again.headers == {}
    for bad in (key + " ", key + "\n", key + "\u00fc"):
        with pytest.raises(ValueError, match="api_key") as refused:
            check_key(bad)
        texts.append(str(refused.value))
    assert not [text for text in texts if key in text or repr(key)[1:-1] in text]


@pytest.fixture(autouse=True)
def _no_secrets(monkeypatch):
    for variable in (KEY_VARIABLE, HEADERS_VARIABLE):
        monkeypatch.delenv(variable, raising=False)


def test_an_empty_variable_is_no_key(monkeypatch):
    assert headers_of_environment() == {}
    monkeypatch.setenv(KEY_VARIABLE, "")
    monkeypatch.setenv(HEADERS_VARIABLE, "")
    assert headers_of_environment() == {}
    monkeypatch.setenv(KEY_VARIABLE, "a-key")
    assert headers_of_environment() == {"Authorization": "Bearer a-key"}
    monkeypatch.setenv(HEADERS_VARIABLE, '{"X-Api-Key": "an other"}')
    both = {"Authorization": "Bearer a-key", "X-Api-Key": "an other"}
    assert headers_of_environment() == both
    said = without_secrets("a-key: Bearer a-key, an other or another", both)
    assert said == "(the key): (the key), (the key) or another"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("s3cret", "JSON object"),
        ('["s3cret"]', "JSON object"),
        ('{"X Key": "s3cret"}', "X Key"),
        ('{"Host": "s3cret"}', "Host"),
        ('{"x-request-id": "s3cret"}', "x-request-id"),
        ('{"authorization": "s3cret"}', "authorization"),
        ('{"X-Key": "s3cret", "x-key": "s3cret"}', "x-key"),
        ('{"X-Key": "s3cret\\n"}', "X-Key"),
        ('{"X-Key": ["s3cret"]}', "X-Key"),
        ('{"X-Key": ""}', "X-Key"),
    ],
)
def test_bad_headers_are_named_without_their_values(monkeypatch, text, named):
    monkeypatch.setenv(KEY_VARIABLE, "a-key")
    monkeypatch.setenv(HEADERS_VARIABLE, text)
    with pytest.raises(ValueError, match=rf"BENCHLIB_LOAD_HEADERS.*{named}") as refused:
        headers_of_environment()
    assert "s3cret" not in str(refused.value)
