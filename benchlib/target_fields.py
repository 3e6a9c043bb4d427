"""The fields of a server's spec that a run's record keeps as its target.

Knows their names, and which of them make two points of a sweep two cases. Ignorant of values.
"""

from __future__ import annotations

from benchlib.serving.engine.options import RECORDED_OPTIONS

_MODEL_FIELDS = (
    "model", "device", "dtype", "recipe", "torch_threads", "seed",
    "model_params", "weights_gib", "showcase",
)  # fmt: skip
_MEASURED_FIELDS = ("memory_before_load_gib", "step_times", "step_times_by_replica")
REQUESTED_FIELDS = (*_MODEL_FIELDS, *RECORDED_OPTIONS)
# Older records lack these, so only a value that is given makes another case of a point.
LATER_FIELDS = (
    "unet", "vae", "scheduler", "loras", "fused_loras", "lora_files", "replicas",
)  # fmt: skip
# Older records lack these, too; they are no part of what makes two points one case.
_NOTED_FIELDS = (
    "batch_buckets", "variant", "checkpoint", "predicts", "guided_rows", "scheduler_class",
    "skips_prk_steps", "on_nonfinite", "deadline_s", "max_pixel_steps", "max_queue_s",
    "max_per_client", "limits", "load_s", "warm_up_s", "artefacts",
)  # fmt: skip
TARGET_FIELDS = (*REQUESTED_FIELDS, *LATER_FIELDS, *_NOTED_FIELDS, *_MEASURED_FIELDS)
"""The fields of a run's target in its record. A `Server` has all of them, a bare URL none."""
