"""peft's layers in a model and out of it again, whatever library the model is from.

diffusers and transformers have mixins of their own for this, with flags that their loaders read; models without one
(PixArt) take peft's layers directly.
"""

from diffusers.loaders.peft import PeftAdapterMixin as DiffusersHost
from diffusers.utils import recurse_remove_peft_layers
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.integrations import PeftAdapterMixin as TransformersHost


def carries_adapter(module: nn.Module) -> bool:
    """Whether peft's layers are in the module."""
    return any(isinstance(part, BaseTunerLayer) for part in module.modules())


def add_adapter(module: nn.Module, config: LoraConfig, name: str) -> None:
    """Wrap the layers that ``config`` targets; the adapter ``name`` is active afterwards."""
    if isinstance(module, DiffusersHost | TransformersHost):
        module.add_adapter(config, adapter_name=name)
    else:
        inject_adapter_in_model(config, module, name)
    config.base_model_name_or_path = None  # transformers notes the folder that the model was loaded from


def remove_adapters(module: nn.Module) -> None:
    """Put the original layers back, with their weights as they are now."""
    if isinstance(module, DiffusersHost):
        module.unload_lora()
        return
    recurse_remove_peft_layers(module)
    vars(module).pop("peft_config", None)
    if isinstance(module, TransformersHost):
        module._hf_peft_config_loaded = False
