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
from utcompile.tuners.lora import Lora, LoraConfig
from utcompile.tuners.prefix import Prefix, PrefixConfig

__all__ = [
    "Adapter",
    "AdapterConfig",
    "Form",
    "Lora",
    "LoraConfig",
    "Port",
    "Prefix",
    "PrefixConfig",
    "Tuner",
    "TunerConfig",
    "TunerSite",
    "config_for",
    "register_tuner",
    "tuner_class",
    "tuner_kinds",
]
