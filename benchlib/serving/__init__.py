"""What is measured: an SDXL pipeline, the engine that drives it, and the HTTP server before it."""

import logging

# transformers mentions that torchvision is missing (no text-to-image model uses it) and that a prompt is longer than
# CLIP reads (diffusers cuts it; a benchmark sends such prompts all the time).
for _module, _words in {
    "utils.import_utils": "requires torchvision",
    "tokenization_utils_base": "Token indices sequence length",
}.items():
    logging.getLogger(f"transformers.{_module}").addFilter(
        lambda record, words=_words: words not in record.getMessage()  # type: ignore[misc]
    )
