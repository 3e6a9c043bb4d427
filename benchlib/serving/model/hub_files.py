"""Hub files: one weights file of a repository on the hub, as `owner/name/file.safetensors`.

Knows how such a name is written and where the hub's client keeps the file. Ignorant of what the
file holds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError

from benchlib.serving.model.model_errors import ModelError


def is_hub_name(source: str) -> bool:
    """Whether a name is meant for the hub, as it is neither here nor written as a path."""
    return not Path(source).exists() and not source.startswith((".", "/", "~"))


def is_hub_file(source: str) -> bool:
    """Whether a name is `owner/name/file.safetensors`."""
    has_file = source.endswith(".safetensors") and source.count("/") >= 2
    return has_file and is_hub_name(source)


def hub_file(source: str, ask_hub: Callable[[str], set[str]], *, field: str) -> Path:
    """The path of a file in the hub's cache; it is downloaded if it is not there.

    `ask_hub` raises `ModelError` if the hub can't be reached, and so does this function if the
    repository has no such file. `field` begins its words.
    """
    owner, name, file = source.split("/", 2)
    hub_id = f"{owner}/{name}"
    try:
        return Path(hf_hub_download(hub_id, file, local_files_only=True))
    except LocalEntryNotFoundError:
        files = ask_hub(hub_id)
    if file not in files:
        others = ", ".join(sorted(one for one in files if one.endswith(".safetensors"))[:5])
        raise ModelError(
            f"{field}: {hub_id} on the hub has no file {file!r}; it has {others or 'no weights'}"
        )
    return Path(hf_hub_download(hub_id, file))
