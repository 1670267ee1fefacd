"""timm models of unlike classes: captured bit for bit, and every rule that applies starts as what its tuners claim."""

from __future__ import annotations

import pytest
import timm
import torch

import utcompile as utc
from utcompile.rules import shipped_rules

MODELS = """
beit_base_patch16_224 botnet26t_256 cait_xxs24_224 coat_tiny coatnet_nano_rw_224 convit_tiny convmixer_768_32
crossvit_tiny_240 cspresnet50 darknet53 davit_tiny densenet121 dla34 dpn48b edgenext_xx_small efficientformer_l1
efficientformerv2_s0 efficientvit_b0 efficientvit_m0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gernet_s ghostnet_050
hardcorenas_a hgnet_tiny hiera_tiny_224 hrnet_w18_small inception_v3 inception_next_tiny lcnet_050 levit_128s
maxvit_nano_rw_256 mixnet_s mnasnet_050 mobilenetv3_small_050 mobilenetv4_conv_small mobileone_s0 mobilevit_xxs
mobilevitv2_050 mvitv2_tiny nest_tiny nfnet_l0 nf_resnet26 pit_ti_224 poolformer_s12 pvt_v2_b0
""".split()
UNFIT = (
    "matched 0 places",
    "LoRA does not apply",
    "an adapter cannot bring",
    "a prefix cannot bring",
    "none of the rules matches",
    "is made of several parameters",
)


@pytest.mark.full
@pytest.mark.parametrize("name", MODELS)
def test_capture_and_rules(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    x = torch.randn(2, *model.default_cfg["input_size"])
    captured = utc.capture(model, x)
    y = torch.randn(3, *x.shape[1:])
    with torch.no_grad():
        assert torch.equal(captured(y), model(y))
        base = captured(x)
    for rules in shipped_rules():
        try:
            tuned = utc.match(captured, rules).apply().eval()
        except utc.UtcError as error:  # a rule that does not fit says so; it never fits by half
            assert any(word in error.what for word in UNFIT), error
            continue
        with torch.no_grad():
            found = tuned(x)
        if all(tuned.tuner(site.id).identity_at_start for site in tuned.sites):
            assert torch.equal(found, base), rules
        else:  # prompts, side networks and Houlsby's init
            assert found.shape == base.shape and found.isfinite().all(), rules
