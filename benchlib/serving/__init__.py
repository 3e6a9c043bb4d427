"""What is measured: an SDXL pipeline, the engine that drives it, and the HTTP server in front."""

import logging
import os

# GOMP_SPINCOUNT is how often a waiting thread checks a barrier before it sleeps. libgomp reads the
# variable when torch is imported. The default is 300,000 checks. On a machine with other work,
# waiting threads then take the cores from the thread that they wait for. Images on a CPU take 25
# times as long. With 10,000 checks they do not, and an idle machine loses nothing.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Log messages of libraries that are of no use to the user of a benchmark. The libraries report a
# missing torchvision, which no text-to-image model uses, and each prompt that is longer than CLIP
# reads.
_UNWANTED = {
    "transformers.utils.import_utils": "requires torchvision",
    "transformers.tokenization_utils_base": "Token indices sequence length",
    "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl": "truncated",
}
for _logger, _words in _UNWANTED.items():
    logging.getLogger(_logger).addFilter(
        lambda record, words=_words: words not in record.getMessage()  # type: ignore[misc]
    )
