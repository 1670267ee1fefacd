"""The tuners: one file a family."""

from utcompile.tuners.adapter import Adapter, AdapterConfig
from utcompile.tuners.base import (
    Form,
    Port,
    Tuner,
    TunerConfig,
    TunerSite,
    config_for,
    register_tuner,
    tuner_class,
    tuner_kinds,
)
from utcompile.tuners.conv_adapter import ConvAdapter, ConvAdapterConfig
from utcompile.tuners.lora import Lora, LoraConfig
from utcompile.tuners.prefix import Prefix, PrefixConfig
from utcompile.tuners.prompt import Prompt, PromptConfig
from utcompile.tuners.side_chain import Bypass, BypassConfig, Ladder, LadderConfig

__all__ = [
    "Adapter",
    "AdapterConfig",
    "Bypass",
    "BypassConfig",
    "ConvAdapter",
    "ConvAdapterConfig",
    "Form",
    "Ladder",
    "LadderConfig",
    "Lora",
    "LoraConfig",
    "Port",
    "Prefix",
    "PrefixConfig",
    "Prompt",
    "PromptConfig",
    "Tuner",
    "TunerConfig",
    "TunerSite",
    "config_for",
    "register_tuner",
    "tuner_class",
    "tuner_kinds",
]
