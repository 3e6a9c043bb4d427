"""LitServe over the stock tiny pipeline: a rival for `serving.py` that batches whole requests.

    python -m benchmarks.litserve_rival --port 8001 --batch-timeout 0.005

Needs the extra `litserve` of pyproject.toml. One worker process computes; on the other sides one
thread does.
"""

from __future__ import annotations

import argparse
from typing import Any

import litserve

import benchlib.serving  # noqa: F401 - before torch: it sets how long torch's threads spin
from benchmarks.rivals import make_images, stock_pipeline


class Images(litserve.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's own signature
        self.pipe = stock_pipeline()

    def predict(self, requests: list[dict[str, Any]]) -> list[Any]:
        return make_images(self.pipe, requests)

    def encode_response(self, image: Any) -> dict[str, Any]:
        return {"width": image.width, "height": image.height}


def main() -> None:
    parser = argparse.ArgumentParser(description="LitServe over the tiny model.")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument(
        "--batch-timeout", type=float, default=0.005, help="seconds to wait for a fuller batch"
    )
    parser.add_argument("--max-batch-size", type=int, default=8)
    options = parser.parse_args()
    api = Images(options.max_batch_size, options.batch_timeout, api_path="/benchmark/generate")
    server = litserve.LitServer(api, accelerator="cpu", timeout=False)
    server.run(
        "127.0.0.1",
        options.port,
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )


if __name__ == "__main__":
    main()
