"""What an adapter costs: a row for each way of using it, and the lines of the answer."""

import pandas as pd
import pytest

from benchlib.questions.settings.judge import adapter_lines
from benchlib.questions.settings.measure_adapters import COLUMNS, price_adapters
from benchlib.serving.model.model_errors import ModelError


def test_each_way_is_timed_and_kept(tmp_path):
    loras = {"style": "random-4", "face": "random-4"}
    prices = price_adapters("tiny", loras, device="cpu", folder=tmp_path)
    assert list(prices.columns) == list(COLUMNS)
    ways = ["without", "fused", "by request", "by request", "switching"]
    assert list(prices["way"]) == ways
    assert list(prices["lora"]) == [None, "style", "style", "face", None]
    assert (prices["images"] == 5).all()
    for row in prices.to_dict("records"):
        low, high = row["image_s_interval"]
        assert low < row["image_s"] < high
        assert row["images_per_s"] == 1 / row["image_s"]
    kept = pd.read_csv(tmp_path / "adapters.csv")
    assert list(kept["way"]) == ways
    assert len(adapter_lines(prices)) == 6


def test_without_adapters_nothing_is_timed(tmp_path):
    prices = price_adapters("tiny", {}, device="cpu", folder=tmp_path)
    assert prices.empty
    assert adapter_lines(prices) == adapter_lines(None) == []
    assert not list(tmp_path.iterdir())


def test_a_file_that_can_not_be_used_is_named(tmp_path):
    with pytest.raises(ModelError, match="loras: style: there is no file or folder"):
        price_adapters("tiny", {"style": str(tmp_path / "none.safetensors")}, device="cpu")


def test_the_lines_say_seconds_rate_and_number_of_images():
    prices = pd.DataFrame(
        [
            ("without", None, 0.5, (0.4, 0.6), 10, 2.0),
            ("by request", "style", 0.8, None, 10, 1.25),
        ],
        columns=COLUMNS,
        dtype=object,
    )
    assert adapter_lines(prices) == [
        "What a LoRA adapter costs, by 10 images alone for each way:",
        "- without: 0.5 s (0.4 to 0.6) an image, 2 images/s",
        "- by request (style): 0.8 s an image, 1.25 images/s",
    ]
