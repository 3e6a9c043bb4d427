"""What is measured: an SDXL pipeline, the engine that drives it, and the HTTP server before it."""

import logging
import os

# libgomp reads this variable when torch is imported: how often a thread checks a barrier before it sleeps. With the
# default of 300,000 checks, waiting threads keep the cores from the thread that they wait for, as soon as the machine
# has other work. Images on a CPU then take 25 times as long. 10,000 checks avoid that at no cost on an idle one.
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
