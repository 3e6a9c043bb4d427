"""The SDXL pipeline: how it is loaded, made faster, and moved on by a step. Ignorant of queues."""

from benchlib.serving.model.peft_later import import_peft_later

import_peft_later()
