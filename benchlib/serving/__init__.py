"""What is measured: an SDXL pipeline, the engine that drives it, and the HTTP server before it."""

import logging
import os

# Read by libgomp when torch is imported: how often a thread looks before it sleeps at a barrier. The default, 300,000
# looks, keeps the core from the very thread that is waited for as soon as anything else runs on the machine: images on
# the CPU then take 25 times as long. With 10,000 they don't, and without other work they are as fast.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Log messages of libraries that say nothing to the user of a benchmark. transformers mentions that torchvision is
# missing, which no text-to-image model uses. Both libraries report each prompt that is longer than CLIP reads.
_UNWANTED = {
    "transformers.utils.import_utils": "requires torchvision",
    "transformers.tokenization_utils_base": "Token indices sequence length",
    "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl": "truncated",
}
for _logger, _words in _UNWANTED.items():
    logging.getLogger(_logger).addFilter(
        lambda record, words=_words: words not in record.getMessage()  # type: ignore[misc]
    )
