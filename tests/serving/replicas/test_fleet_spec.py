"""What a fleet says of its replicas' step times."""

from benchlib.serving.replicas.fleet_spec import describe_fleet, step_span_in_words
from benchmarks.fakes.replicas import fake_spec


def spec_of(step_s):
    """The spec of a replica that takes so long for a step of two rows, which is one guided image."""
    one = {"1": 0.1}
    times = {"step_s": {"1": 0.5 * step_s, "2": step_s}, "encode_s": one, "decode_s": one}
    return fake_spec(step_times={"64x64": times})


def test_all_step_times_are_told_and_the_middle_ones_stand_for_them():
    specs = {"0": spec_of(0.2), "1": spec_of(0.9), "2": spec_of(0.3)}
    told = describe_fleet(specs)
    assert told["step_times"] == specs["2"]["step_times"]
    assert told["step_times_by_replica"] == {
        name: spec["step_times"] for name, spec in specs.items()
    }
    assert told["model"] == "fake"


def test_of_two_replicas_the_slower_one_stands_for_both():
    specs = {"0": spec_of(0.9), "1": spec_of(0.2)}
    assert describe_fleet(specs)["step_times"] == specs["0"]["step_times"]


def test_the_span_of_the_replicas_is_told_in_words():
    told = describe_fleet({"0": spec_of(0.9), "1": spec_of(0.25)})
    assert step_span_in_words(told) == "64x64: 250 ms (replica 1) to 900 ms (replica 0)"
    assert step_span_in_words(fake_spec()) is None
