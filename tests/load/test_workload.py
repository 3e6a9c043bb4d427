"""Workloads and plans: the same requests every time, refusals, and the trip through JSON."""

import json
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchlib.load.arrivals import ClosedLoop, OpenLoop, Trace
from benchlib.load.plan import LoadPlan
from benchlib.load.workload import Workload, _own_prompts

# Other work may slow the machine down.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
SIZE = st.integers(8, 256).map(lambda eighth: eighth * 8)
STEPS = st.integers(1, 150)
LORA = st.sampled_from(["style", "style:0.5", "face:-1"])
SCHEDULER = st.sampled_from(["euler", "heun"])
GUIDANCE = st.floats(0, 30) | st.integers(0, 30)


def choices(values):
    weights = st.dictionaries(values, st.floats(0.01, 100), min_size=1, max_size=4)
    return values | st.lists(values, min_size=1, max_size=4) | weights | st.none()


WORKLOADS = st.builds(
    Workload,
    prompts=choices(TEXT),
    width=choices(SIZE),
    height=choices(SIZE),
    num_inference_steps=choices(STEPS),
    guidance_scale=choices(GUIDANCE),
    negative_prompt=choices(TEXT | st.just("")) | st.lists(st.none() | TEXT, min_size=1),
    seed=st.integers(0, 2**63),
    lora=choices(LORA) | st.lists(st.none() | LORA, min_size=1),
    scheduler=choices(SCHEDULER) | st.lists(st.none() | SCHEDULER, min_size=1),
)


@UNHURRIED
@given(WORKLOADS, st.integers(0, 10**9))
def test_a_workload_survives_json_and_asks_for_the_same_again(workload, index):
    read = Workload.from_dict(json.loads(json.dumps(workload.to_dict())))
    assert read == workload
    assert read.to_dict() == workload.to_dict() == json.loads(json.dumps(workload.to_dict()))
    assert read.request(index) == workload.request(index)


@UNHURRIED
@given(WORKLOADS, st.integers(0, 10**9))
def test_a_request_holds_choices_only_and_leaves_out_what_is_none(workload, index):
    body = workload.request(index)
    assert 0 <= body.pop("seed") < 2**32
    for field, value in vars(workload).items():
        name = "prompt" if field == "prompts" else field
        if field == "seed":
            continue
        if value is None:
            assert (name in body) == (field == "prompts")
        else:
            assert body.get(name) in (value if isinstance(value, tuple | dict) else [value])


def test_requests_are_the_same_in_every_process():
    ask = "from benchlib.load.workload import Workload; print(Workload(width=[64, 128], seed=7).request(41))"
    printed = {
        subprocess.run([sys.executable, "-c", ask], capture_output=True, check=True).stdout
        for _ in range(2)
    }
    assert printed == {f"{Workload(width=[64, 128], seed=7).request(41)}\n".encode()}


def test_choices_come_as_often_as_their_weights_say_and_another_seed_shuffles():
    workload = Workload("a", width={64: 3, 128: 1, 256: 0}, height=[64, 72])
    counts = Counter((body["width"], body["height"]) for body in map(workload.request, range(4000)))
    assert set(counts) == {(64, 64), (64, 72), (128, 64), (128, 72)}
    assert counts[64, 64] == pytest.approx(1500, abs=150)
    assert counts[128, 72] == pytest.approx(500, abs=100)
    assert [workload.request(i) for i in range(9)] != [
        Workload(**{**vars(workload), "seed": 1}).request(i) for i in range(9)
    ]


def test_more_choices_for_one_field_change_no_other():
    few, many = Workload(width=64), Workload(width=[64, 128], num_inference_steps=[1, 2])
    for index in range(50):
        assert few.request(index)["prompt"] == many.request(index)["prompt"]
        assert few.request(index)["seed"] == many.request(index)["seed"]


def test_our_own_prompts_are_many_short_long_and_of_many_scripts():
    prompts = _own_prompts()
    assert len(set(prompts)) == len(prompts) >= 64
    assert sum(len(prompt.split()) > 77 for prompt in prompts) >= 4
    assert sum(len(prompt.split()) < 7 for prompt in prompts) >= 10
    assert sum(not prompt.isascii() for prompt in prompts) >= 5


def test_defaults_fill_only_what_is_none():
    workload = Workload("a", width=64).with_defaults(width=128, height=128, num_inference_steps=8)
    assert workload == Workload("a", width=64, height=128, num_inference_steps=8)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("own.txt", "\ufeffa cat\n\n  ein Hündchen \n"),
        ("own.csv", 'id,prompt\n1,a cat\n2,"ein Hündchen"\n'),
        ("own.jsonl", '{"prompt": "a cat", "id": 1}\n{"prompt": "ein Hündchen"}\n'),
    ],
)
def test_prompts_from_a_file(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert Workload(path).prompts == ("a cat", "ein Hündchen")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("own.txt", b"\n"),
        ("own.txt", b"\xff\xfe\xff"),
        ("own.csv", b"text\na cat\n"),
        ("own.jsonl", b'{"prompt": "a"}\n{"text": "b"}\n'),
        ("own.jsonl", b"a cat\n"),
        ("own.jsonl", b'{"prompt": 5}\n'),
        ("own.yaml", b"a cat\n"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        Workload(tmp_path / name)


def test_a_csv_without_the_column_says_which_it_has(tmp_path):
    (tmp_path / "own.csv").write_text("text,id\na cat,1\n")
    with pytest.raises(ValueError, match=r"own\.csv: it has no column prompt; it has text, id"):
        Workload(tmp_path / "own.csv")


@pytest.mark.parametrize(
    "fields",
    [
        {"prompts": ""}, {"prompts": []}, {"prompts": ["a", None]}, {"prompts": "\ud800"},
        {"width": 0}, {"width": 64.0}, {"width": True}, {"height": [64, None]},
        {"height": {64: -1}}, {"height": {64: 0}}, {"height": {64: float("nan")}}, {"height": {}}, {"height": "64"},
        {"num_inference_steps": 0}, {"guidance_scale": -1},
        {"guidance_scale": float("nan")}, {"guidance_scale": float("inf")}, {"negative_prompt": 5},
        {"seed": -1}, {"seed": 0.5}, {"lora": ""}, {"lora": 5}, {"scheduler": ""}, {"scheduler": ["euler", 5]},
    ],
)  # fmt: skip
def test_what_no_server_can_take_is_named(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        Workload(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompts": "x" * 4001}, {"width": 63}, {"width": 65}, {"width": [64, 2056]}, {"height": {64: 1, 65: 0}},
        {"num_inference_steps": 151}, {"guidance_scale": 30.1}, {"negative_prompt": "x" * 4001},
        {"lora": "a:b"}, {"lora": ["a.b"]}, {"lora": "a:11"},
    ],
)  # fmt: skip
def test_the_bounds_of_our_own_server_hold_where_it_is_the_target(fields):
    [name] = fields
    workload = Workload(**fields)
    with pytest.raises(ValueError, match=name):
        workload.check_own_bounds()
    with pytest.raises(ValueError, match=name):
        LoadPlan("http://h", ClosedLoop(1), workload, requests=1)
    size = {"width": 64, "height": 64} if name in ("width", "height") else {}
    LoadPlan("http://h", ClosedLoop(1), Workload(**size | fields), requests=1, api="openai")


def test_the_bounds_of_our_own_server_hold_for_a_trace():
    trace = Trace([0, 1], [{"prompt": "a"}, {"width": 4096, "height": 4096}])
    LoadPlan("http://h", trace, Workload(), api="sglang")
    with pytest.raises(ValueError, match=r"requests\[1\]: width must be .* from 64 to 2048"):
        LoadPlan("http://h", trace, Workload())


def test_a_workload_from_the_environment(tmp_path):
    (tmp_path / "own.txt").write_text("a cat\na dog\n")
    settings = {
        "PROMPTS": str(tmp_path / "own.txt"), "WIDTH": "64", "HEIGHT": "64, 128", "NUM_INFERENCE_STEPS": "4",
        "GUIDANCE_SCALE": "0,7.5", "NEGATIVE_PROMPT": "", "SEED": "3", "LORA": "none,style:0.5",
        "SCHEDULER": "euler-a",
    }  # fmt: skip
    environ = {"PATH": "/bin"} | {
        f"BENCHLIB_WORKLOAD_{name}": value for name, value in settings.items()
    }
    assert Workload.from_env(environ) == Workload(
        ["a cat", "a dog"], 64, [64, 128], 4, [0.0, 7.5], "", 3, [None, "style:0.5"], "euler-a"
    )
    assert Workload.from_env({}) == Workload()
    for name, value in [("WIDTH", "wide"), ("WIDTHS", "64")]:
        with pytest.raises(ValueError, match=f"BENCHLIB_WORKLOAD_{name}"):
            Workload.from_env({f"BENCHLIB_WORKLOAD_{name}": value})


def test_a_plan_travels():
    plan = LoadPlan(
        "http://[::1]:8000/",
        ClosedLoop(2),
        Workload("a", width={64: 1, 128: 2}),
        requests=3,
        max_s=9.5,
    )
    assert plan.url == "http://[::1]:8000"
    several = LoadPlan(["http://a/", "http://b"], OpenLoop(2.5), Workload(), duration_s=1)
    assert several.url == ("http://a", "http://b")
    assert (plan.shown_url, several.shown_url) == ("http://[::1]:8000", "http://a and 1 more")
    for some in (plan, several, LoadPlan(["http://h"], OpenLoop(2.5), Workload(), duration_s=1)):
        assert LoadPlan.from_dict(json.loads(json.dumps(some.to_dict()))) == some


def test_a_plan_of_a_trace_ends_with_it():
    trace = Trace([0, 1, 2], [{"prompt": "a"}, {}, {}])
    plan = LoadPlan("http://h", trace, Workload("b", width=64), warmup_s=1)
    assert plan.requests == 2
    assert [plan.request(index)["prompt"] for index in range(3)] == ["a", "b", "b"]
    assert plan.request(0) == Workload("b", width=64).request(0) | {"prompt": "a"}
    with pytest.raises(ValueError, match="warmup_s"):
        LoadPlan("http://h", trace, Workload(), warmup_s=3)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"duration_s": None}, "duration_s.*requests"), ({"duration_s": 0}, "duration_s"),
        ({"requests": 0}, "requests"),
        ({"requests": 1.5}, "requests"), ({"max_s": float("inf")}, "max_s"), ({"warmup_s": -1}, "warmup_s"),
        ({"timeout_s": 0}, "timeout_s"), ({"seed": True}, "seed"), ({"url": "127.0.0.1:8000"}, "url"),
        ({"url": "ftp://host"}, "url"), ({"url": "http://"}, "url"), ({"url": "http://host?x=1"}, "url"),
        ({"url": []}, "list of URLs"), ({"url": ["http://a", None]}, "URL"), ({"url": ["http://a", "b"]}, "url.*'b'"),
        ({"url": ["http://a", "http://me:too@a/"]}, "http://a is in the list of targets twice"),
    ],
)  # fmt: skip
def test_a_plan_names_what_is_wrong(fields, named):
    with pytest.raises(ValueError, match=named):
        LoadPlan(
            **{
                "url": "http://h",
                "arrivals": ClosedLoop(1),
                "workload": Workload(),
                "duration_s": 1.0,
                **fields,
            }
        )
