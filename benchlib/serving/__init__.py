"""What is measured: an SDXL pipeline, the engine that drives it, and the HTTP server before it."""

import logging
import os

# Read by libgomp when torch is imported: how often a thread looks before it sleeps at a barrier. The default, 300,000
# looks, keeps the core from the very thread that is waited for as soon as anything else runs on the machine: images on
# the CPU then take 25 times as long. With 10,000 they don't, and without other work they are as fast.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# transformers mentions that torchvision is missing (no text-to-image model uses it) and that a prompt is longer than
# CLIP reads (diffusers cuts it; a benchmark sends such prompts all the time).
for _module, _words in {
    "utils.import_utils": "requires torchvision",
    "tokenization_utils_base": "Token indices sequence length",
}.items():
    logging.getLogger(f"transformers.{_module}").addFilter(
        lambda record, words=_words: words not in record.getMessage()  # type: ignore[misc]
    )
