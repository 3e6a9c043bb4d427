#!/usr/bin/env bash
# Locust 2.47.0.
#
# Behaviour: Locust rounds each response time to two significant digits before it counts it, to
# save memory. Its percentiles, median included, come from the rounded times; its mean does not.
# One would guess: a median of 1,500 ms says that half of the requests took 1,500 ms or less.
# Why it matters: an image takes about a second, so percentiles move in steps of 0.1 s. A change
# of the server by 6 % can be invisible, and one by 0.1 % can look like 7 %.
#
# Output seen:
#   1000 requests of 1449 ms: median 1400 ms, mean 1449 ms
#   1000 requests of 1451 ms: median 1500 ms, mean 1451 ms
#   1000 requests of 1549 ms: median 1500 ms, mean 1549 ms
#   1000 requests of 1551 ms: median 1600 ms, mean 1551 ms
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check locust==2.47.0
venv/bin/python - <<'PY'
import sys

from locust.stats import RequestStats


def median_ms(true_ms):
    stats = RequestStats()
    for _ in range(1000):
        stats.log_request("POST", "/generate", true_ms, content_length=0)
    entry = stats.get("/generate", "POST")
    median = entry.get_response_time_percentile(0.5)
    mean = entry.avg_response_time
    print(f"1000 requests of {true_ms} ms: median {median} ms, mean {mean:.0f} ms")
    return median


medians = [median_ms(ms) for ms in (1449, 1451, 1549, 1551)]
sys.exit(0 if medians == [1400, 1500, 1500, 1600] else "The behaviour has changed.")
PY
