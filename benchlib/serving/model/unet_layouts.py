"""UNet layouts: how many transformer layers each block of a UNet has, by the names of its weights.

SSD-1B and Segmind Vega are SDXL's UNet with fewer transformer layers, and without those of the middle
block. Their single files have the original names, which number each layer. So the file itself
says what its configuration would say.

Knows the original names of SDXL's layers. Ignorant of how a UNet is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from benchlib.serving.model.weights_files import Header

_LAYER = re.compile(
    r"(?:model\.diffusion_model\.)?(input_blocks\.\d+|middle_block|output_blocks\.\d+)"
    r"\.1\.transformer_blocks\.(\d+)\."
)
_ORIGINAL = re.compile(r"(?:model\.diffusion_model\.)?input_blocks\.0\.0\.weight")
_WITHOUT_ATTENTION = ("DownBlock2D", "UpBlock2D")
# diffusers' own: older configurations lack these fields.
_DEFAULTS = {
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
}


def laid_out(header: Header, config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with the layers that the file's names show, where it can say them.

    It stays as it is for a file with diffusers' own names. Other differences show in the number of
    parameters, which the caller compares.
    """
    unchanged = dict(config)
    if not any(_ORIGINAL.fullmatch(key) for key in header.shapes):
        return unchanged

    # 1) Count the layers at each place; they are numbered from 0
    depths: dict[str, int] = {}
    for key in header.shapes:
        if match := _LAYER.match(key):
            place, number = match.groups()
            depths[place] = max(depths.get(place, 0), int(number) + 1)

    # 2) Sort the places into blocks. Each down block but the last ends in a sampler of its own
    resnets = config.get("layers_per_block", 2)
    if not isinstance(resnets, int):
        return unchanged
    down = []
    for block, kind in enumerate(config["down_block_types"]):
        places = [f"input_blocks.{1 + block * (resnets + 1) + layer}" for layer in range(resnets)]
        down.append(_depths_of(places, kind, depths))
    up = []
    for block, kind in enumerate(config["up_block_types"]):
        places = [f"output_blocks.{block * (resnets + 1) + layer}" for layer in range(resnets + 1)]
        up.append(_depths_of(places, kind, depths))

    # 3) Say it in diffusers' words: a number for each block where its places are alike
    middle = "UNetMidBlock2DCrossAttn" if "middle_block" in depths else "UNetMidBlock2D"
    even_down = [block[0] for block in down if len(set(block)) == 1]
    even_up = [block[0] for block in up if len(set(block)) == 1]
    layers: list[Any] = down
    reverse: list[Any] | None = up
    if len(even_down) == len(down) and even_up == even_down[::-1]:
        layers = even_down
        reverse = None
    own = {
        "transformer_layers_per_block": layers,
        "reverse_transformer_layers_per_block": reverse,
        "mid_block_type": middle,
    }
    known = _DEFAULTS | unchanged
    is_usual = all(known[field] == value for field, value in own.items())
    return unchanged if is_usual else unchanged | own


def _depths_of(places: list[str], kind: str, depths: Mapping[str, int]) -> list[int]:
    """The layers at each place of a block; 1 stands for none where the block has no attention."""
    if kind in _WITHOUT_ATTENTION:
        return [1] * len(places)
    return [depths.get(place, 0) for place in places]
