"""The key of a load: it is in no text, however a server repeats it."""

import html
import json
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchlib.load.arrivals import ClosedLoop
from benchlib.load.bearer import KEY_VARIABLE, check_key, key_of_environment, without_key
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
        words = without_key(f"{before}{spelling}{after}", key)
        assert "(the key)" in words
        assert not [each for each in spellings(key) if each in words]
    assert without_key(before, None) == before


@UNHURRIED
@given(KEYS)
def test_no_text_of_a_plan_has_its_key(key):
    plan = LoadPlan("http://a", ClosedLoop(1), Workload(), requests=1, api_key=key)
    texts = [repr(plan), str(plan.to_dict())]
    again = LoadPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again.api_key is None
    for bad in (key + " ", key + "\n", key + "\u00fc"):
        with pytest.raises(ValueError, match="api_key") as refused:
            check_key(bad)
        texts.append(str(refused.value))
    assert not [text for text in texts if key in text or repr(key)[1:-1] in text]


def test_an_empty_variable_is_no_key(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert key_of_environment() is None
    monkeypatch.setenv(KEY_VARIABLE, "")
    assert key_of_environment() is None
    monkeypatch.setenv(KEY_VARIABLE, "a-key")
    assert key_of_environment() == "a-key"
