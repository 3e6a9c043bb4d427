"""The hand-off: a size that the model's VAE can't make is refused before it is queued."""

import httpx
import pytest
from diffusers import AutoencoderKL

from benchlib.serving.server import serve

from .model.small_models import load, small_pipeline


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A server whose VAE has five levels: 16 pixels to a latent."""
    folder = tmp_path_factory.mktemp("five") / "levels"
    stock = small_pipeline()
    stock.vae = AutoencoderKL(
        block_out_channels=[16] * 5,
        norm_num_groups=8,
        down_block_types=["DownEncoderBlock2D"] * 5,
        up_block_types=["UpDecoderBlock2D"] * 5,
    )
    stock.save_pretrained(folder)
    with (
        serve(load(folder), name="five", sizes=[(128, 128)]) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield client


def body(**changes):
    return {"prompt": "a", "num_inference_steps": 1, "width": 128, "height": 128} | changes


def test_sizes_follow_the_models_own_scale(client):
    assert client.post("/benchmark/generate", json=body(width=144)).status_code == 200
    refused = client.post("/benchmark/generate", json=body(width=136, height=88))
    assert refused.status_code == 422
    problems = refused.json()["detail"]
    assert [problem["loc"] for problem in problems] == [["body", "width"], ["body", "height"]]
    assert problems[0]["msg"] == "136 is no multiple of 16, which this model's VAE needs; take 128"


def test_openais_route_says_it_in_its_own_shape(client):
    sizes = {"prompt": "a", "num_inference_steps": 1, "size": "136x128"}
    refused = client.post("/v1/images/generations", json=sizes)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"] == "size"
    assert "no multiple of 16" in error["message"]


def test_the_spec_says_it(client):
    spec = client.get("/ready").json()["spec"]
    assert spec["size_multiple"] == 16
    assert spec["showcase"]["width"] == 16 * 16
