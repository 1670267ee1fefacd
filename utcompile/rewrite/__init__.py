"""`Plan` × graph -> `TunedModule`; its checkpoints."""

from utcompile.rewrite.apply import apply_plan
from utcompile.rewrite.base_print import fingerprint
from utcompile.rewrite.checkpoint import TENSORS, load_tuners, move_checkpoint, read_tensors, save_tuners
from utcompile.rewrite.from_peft import load_peft, peft_rules
from utcompile.rewrite.functional import to_module
from utcompile.rewrite.layer_sizes import fit_sizes
from utcompile.rewrite.learn import check_learning
from utcompile.rewrite.manifest import MANIFEST, read_manifest
from utcompile.rewrite.masters import settle_precision
from utcompile.rewrite.task_doors import load_task, set_task
from utcompile.rewrite.to_peft import save_peft
from utcompile.rewrite.tuned import (
    TunedModule,
    count_parameters,
    disable_tuners,
    enabled_tuners,
    site_nodes,
    trainable_parameters,
)
from utcompile.rewrite.tuned_site import (
    Tuned,
    TunedSite,
    TunedStage,
    TunedStreamTokens,
    TunedTokens,
    TunedValue,
    TunedWeight,
)
from utcompile.rewrite.unwrap import KEPT, unwrapped
from utcompile.rewrite.weights import written_again
from utcompile.rewrite.whole import Kept, Whole, replace_module, site_in, tensors_of

__all__ = [
    "KEPT",
    "MANIFEST",
    "TENSORS",
    "Kept",
    "Tuned",
    "TunedModule",
    "TunedSite",
    "TunedStage",
    "TunedStreamTokens",
    "TunedTokens",
    "TunedValue",
    "TunedWeight",
    "Whole",
    "apply_plan",
    "check_learning",
    "count_parameters",
    "disable_tuners",
    "enabled_tuners",
    "fingerprint",
    "fit_sizes",
    "load_peft",
    "load_task",
    "load_tuners",
    "move_checkpoint",
    "peft_rules",
    "read_manifest",
    "read_tensors",
    "replace_module",
    "save_peft",
    "save_tuners",
    "set_task",
    "settle_precision",
    "site_in",
    "site_nodes",
    "tensors_of",
    "to_module",
    "trainable_parameters",
    "unwrapped",
    "written_again",
]
