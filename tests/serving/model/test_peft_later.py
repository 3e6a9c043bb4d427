"""peft is left out until an adapter needs it, and then all is as if it had been there."""

import json
import subprocess
import sys

from benchlib.serving.model.peft_later import _unless_1, _WithoutPeft

LATER = """
import json, sys
import benchlib.serving.model
from diffusers import StableDiffusionXLPipeline
from diffusers.hooks import layerwise_casting
from diffusers.loaders import lora_base
from diffusers.pipelines import pipeline_loading_utils
from diffusers.utils import scale_lora_layers
import torch
network = torch.nn.Sequential(torch.nn.Linear(2, 2))
compiled = torch.compile(network)
seen = {"compiled": pipeline_loading_utils._unwrap_model(compiled) is network}
scale_lora_layers(network, 1.0)
seen["plain"] = isinstance(network[0], lora_base.BaseTunerLayer)
seen["imported"] = "peft" in sys.modules
import peft
adapted = peft.get_peft_model(network, peft.LoraConfig(r=1, target_modules=["0"]))
layer = network[0]
seen["adapted"] = isinstance(layer, lora_base.BaseTunerLayer)
seen["casts"] = isinstance(layer, layerwise_casting.BaseTunerLayer)
seen["peft_model"] = pipeline_loading_utils._unwrap_model(adapted) is network
scale_lora_layers(network, 0.5)
seen["scale"] = layer.scaling["default"] / 8
with layerwise_casting.disable_input_dtype_casting(network):
    seen["casts_inputs"] = layer.cast_input_dtype_enabled
print(json.dumps(seen))
"""


def test_diffusers_finds_the_layers_of_a_peft_that_is_imported_later():
    ran = subprocess.run([sys.executable, "-c", LATER], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {
        "compiled": True,
        "plain": False,
        "imported": False,
        "adapted": True,
        "casts": True,
        "peft_model": True,
        "scale": 0.5,
        "casts_inputs": False,
    }


def test_a_diffusers_that_imports_more_of_peft_gets_it(tmp_path, monkeypatch):
    for name in [one for one in sys.modules if one.partition(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    file = tmp_path / "asks.py"
    file.write_text("from peft import LoraConfig\n")
    module = type(sys)("asks")
    _WithoutPeft("asks", str(file)).exec_module(module)
    assert module.LoraConfig.__name__ == "LoraConfig"


def test_only_a_scale_of_1_changes_nothing():
    seen = []
    change = _unless_1(lambda model, weight: seen.append((model, weight)))
    for weight in (1.0, None, 0.0, 0.5):
        change("network", weight)
    assert seen == [("network", 0.0), ("network", 0.5)]
