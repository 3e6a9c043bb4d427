"""What is measured: an SDXL pipeline, the engine that drives it, and the HTTP server before it."""

import logging
import os

# Read by libgomp when torch is imported. Its default is to spin at a barrier, for a thread that can not run as long as
# the spinning takes its core: with other work on the machine an image on the CPU took 40 times as long as with this.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# transformers mentions that torchvision is missing (no text-to-image model uses it) and that a prompt is longer than
# CLIP reads (diffusers cuts it; a benchmark sends such prompts all the time).
for _module, _words in {
    "utils.import_utils": "requires torchvision",
    "tokenization_utils_base": "Token indices sequence length",
}.items():
    logging.getLogger(f"transformers.{_module}").addFilter(
        lambda record, words=_words: words not in record.getMessage()  # type: ignore[misc]
    )
