"""The fields of an Outlook that was foretold by 60 images."""

import pandas as pd

USERS = pd.DataFrame(
    {
        "users": [1, 2, 4],
        "images_per_s": [1.5, 1.8, 1.9],
        "mean_s": [0.66, 1.1, 2.1],
        "in_time": [1.0, 1.0, 0.9],
    }
)
FIELDS = {
    "server": "sdxl-random; baseline, continuous",
    "is_tiny": False,
    "slo": "p95 < 2 s",
    "rate": 1.31,
    "interval": (1.27, 1.35),
    "images": 60,
    "is_loaded": True,
    "refusal": None,
    "breaches": (),
    "image_s": 0.66,
    "most_images_per_s": 2.02,
    "users": USERS,
}
