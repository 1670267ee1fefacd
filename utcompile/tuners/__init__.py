"""The tuners, one file per family."""

from utcompile.tuners.activations import SAME_AS
from utcompile.tuners.adapter import Adapter, AdapterConfig
from utcompile.tuners.base import (
    ChannelMap,
    Tuner,
    TunerConfig,
    config_for,
    register_tuner,
    tuner_class,
    tuner_kinds,
)
from utcompile.tuners.bias import Bias, BiasConfig
from utcompile.tuners.bottleneck import Bottleneck
from utcompile.tuners.branches import edges
from utcompile.tuners.conv_adapter import ConvAdapter, ConvAdapterConfig
from utcompile.tuners.conv_lora import ConvLora, ConvLoraConfig
from utcompile.tuners.dora import Dora, DoraConfig
from utcompile.tuners.ia3 import Ia3, Ia3Config
from utcompile.tuners.inner import Inner
from utcompile.tuners.lora import Lora, LoraConfig
from utcompile.tuners.norm_affine import NormAffine, NormAffineConfig
from utcompile.tuners.outputs import Outputs, outputs_of
from utcompile.tuners.precision import HALVES
from utcompile.tuners.prefix import Prefix, PrefixConfig
from utcompile.tuners.prompt import Prompt, PromptConfig
from utcompile.tuners.recompute import recomputed
from utcompile.tuners.recurrent import RECURRENT, EachParameter, build_tuner
from utcompile.tuners.rep_adapter import RepAdapter, RepAdapterConfig
from utcompile.tuners.side_chain import Bypass, BypassConfig, Ladder, LadderConfig
from utcompile.tuners.sites import FORMS, ChainSite, Form, Port, TokensSite, TunerSite, ValueSite, WeightSite
from utcompile.tuners.ssf import Ssf, SsfConfig

__all__ = [
    "FORMS",
    "HALVES",
    "RECURRENT",
    "SAME_AS",
    "Adapter",
    "AdapterConfig",
    "Bias",
    "BiasConfig",
    "Bottleneck",
    "Bypass",
    "BypassConfig",
    "ChainSite",
    "ChannelMap",
    "ConvAdapter",
    "ConvAdapterConfig",
    "ConvLora",
    "ConvLoraConfig",
    "Dora",
    "DoraConfig",
    "EachParameter",
    "Form",
    "Ia3",
    "Ia3Config",
    "Inner",
    "Ladder",
    "LadderConfig",
    "Lora",
    "LoraConfig",
    "NormAffine",
    "NormAffineConfig",
    "Outputs",
    "Port",
    "Prefix",
    "PrefixConfig",
    "Prompt",
    "PromptConfig",
    "RepAdapter",
    "RepAdapterConfig",
    "Ssf",
    "SsfConfig",
    "TokensSite",
    "Tuner",
    "TunerConfig",
    "TunerSite",
    "ValueSite",
    "WeightSite",
    "build_tuner",
    "config_for",
    "edges",
    "outputs_of",
    "recomputed",
    "register_tuner",
    "tuner_class",
    "tuner_kinds",
]
