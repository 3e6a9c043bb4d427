"""Latencies that are predicted from step times, on cases worked out by hand."""

import pandas as pd
import pytest

from benchlib.questions.batching.forecast import predict_latency

CURVES = {
    "step_s": {"1": 0.06, "2": 0.1, "4": 0.1},  # two guided requests at once cost no more than one
    "encode_s": {"1": 0.02, "2": 0.02},
    "decode_s": {"1": 0.08, "2": 0.08},
}
SPEC = {
    "batching": "serial",
    "max_batch_size": 2,
    "max_wait_ms": 0.0,
    "step_times": {"64x64": CURVES},
}


def asked(steps, due_s, **columns):
    size = {"width": 64, "height": 64, "guidance_scale": None}
    frame = pd.DataFrame({"num_inference_steps": steps, "scheduled_s": due_s}).assign(
        **size | columns
    )
    return frame.astype({"num_inference_steps": "Int64", "guidance_scale": "float64"})


def test_serial_makes_the_second_wait_for_the_first():
    requests = asked([4, 9], [0.25, 0.0]).set_axis([7, 3])
    predicted = predict_latency(requests, SPEC)
    assert predicted.index.tolist() == [7, 3]
    assert predicted.tolist() == pytest.approx([0.02 + 0.4 + 0.08 + 0.75, 0.02 + 0.9 + 0.08])


def test_dynamic_answers_a_batch_together_and_continuous_each_when_it_is_done():
    requests = asked([4, 9], [0.0, 0.0])
    assert predict_latency(requests, SPEC, batching="dynamic").tolist() == pytest.approx([1.0, 1.0])
    assert predict_latency(requests, SPEC | {"batching": "continuous"})[0] == pytest.approx(
        0.02 + 0.4 + 0.08
    )


def test_a_request_without_guidance_has_one_row():
    assert predict_latency(asked([5], [0.0], guidance_scale=1.0), SPEC)[0] == pytest.approx(
        0.02 + 0.3 + 0.08
    )
    assert predict_latency(asked([5], [0.0]).drop(columns="guidance_scale"), SPEC)[
        0
    ] == pytest.approx(0.6)


def test_requests_of_other_adapters_wait_and_switch():
    spec = SPEC | {"step_times": {"64x64": CURVES | {"switch_s": 0.5, "lora_ratio": 2.0}}}
    requests = asked([1, 1], [0.0, 0.0], lora=pd.array(["a", None], dtype="string"))
    first, second = predict_latency(requests, spec)
    assert first == pytest.approx(0.5 + 0.02 + 0.2 + 0.08)
    assert second == pytest.approx(first + 0.5 + 0.02 + 0.1 + 0.08)


def test_what_was_not_measured_is_not_guessed():
    with pytest.raises(ValueError, match=r"spec has no step times of \[\(64, 64\)\] pixels"):
        predict_latency(asked([5], [0.0]), {"step_times": None})
    with pytest.raises(
        ValueError, match=r"of \[\(128, 64\)\] pixels; serve\(sizes=...\) measures them"
    ):
        predict_latency(asked([5], [0.0], width=128), SPEC)
    assert predict_latency(asked([5], [0.0]), SPEC | {"replicas": 1})[0] == pytest.approx(0.6)
    with pytest.raises(ValueError, match="its server has 2 replicas"):
        predict_latency(asked([5], [0.0]), SPEC | {"replicas": 2})
