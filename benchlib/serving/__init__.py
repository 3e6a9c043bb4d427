"""What is measured: an SDXL pipeline, the engine that drives it, and the HTTP server before it."""

import logging

# Importing diffusers makes transformers mention, twice, that torchvision is missing. No text-to-image model uses it.
logging.getLogger("transformers.utils.import_utils").addFilter(
    lambda record: "requires torchvision" not in record.getMessage()
)
