"""The tuned model inside what training loops wrap around it: `torch.compile`, DDP, EMA."""

from __future__ import annotations

from torch import nn

from utcompile.errors import UtcError
from utcompile.graph import UtcGraphModule

KEPT = "_utc_parts"  # the attribute of a model of which parts are tuned

# class -> the attribute with the model itself
_WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.CheckpointWrapper": "_checkpoint_wrapped_module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "timm.utils.model_ema.ModelEma": "ema",
    "timm.utils.model_ema.ModelEmaV2": "module",
    "timm.utils.model_ema.ModelEmaV3": "module",
}
# what rounds frozen weights too, so that no checkpoint of it would load onto the base again
_ROUNDING = ("timm.utils.model_ema.ModelEma", "timm.utils.model_ema.ModelEmaV2")
_FIXES = {
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": (
        "shard it with torch.distributed.fsdp.fully_shard (FSDP2), which leaves it as it is; "
        "or gather the weights first: FSDP.summon_full_params"
    ),
}


def unwrapped(model: object, verb: str) -> object:
    """The module of utcompile inside wrappers, or the model with tuned parts.

    What is none comes back as it is, for the verb to refuse.

    Raises:
        UtcError: a module of utcompile is inside, but how to take it out is not clear.
    """
    found = model
    while not is_ours(found):
        names = _class_names(found)
        if verb.startswith("save") and names[0] in _ROUNDING:
            raise UtcError(
                f"{verb} does not take a {type(found).__name__}",
                why="it averages the frozen weights too, and rounding changes them: the base is another one then",
                fix="take timm.utils.ModelEmaV3 or torch's AveragedModel, which leave equal weights equal",
                code="tune/wrapped",
            )
        attribute = wrapped_attribute(found)
        inner = None if attribute is None else getattr(found, attribute, None)
        if inner is None:
            break
        found = inner
    if is_ours(found):
        reshard(found)
        return found.as_one_graph() if isinstance(found, UtcGraphModule) else found
    for owner in (found, model):
        if (fix := _way_in(owner, verb)) is not None:
            raise UtcError(f"{verb} takes a TunedModule, not {type(owner).__name__}", fix=fix, code="tune/wrapped")
    return found


def reshard(model: object) -> None:
    """Let FSDP2 put its shards back: after a forward the root keeps whole parameters, in the forward's precision."""
    for module in model.modules() if isinstance(model, nn.Module) else ():
        if any(name.endswith(".FSDPModule") for name in _class_names(module)):
            module.reshard()  # type: ignore[operator]


def plain_path(model: nn.Module, path: str) -> str:
    """A path or name in a model without what wrappers of modules inside it add: `body._orig_mod.0` is `body.0`."""
    kept: list[str] = []
    module: object = model
    for segment in path.split("."):
        if not any(_WRAPPERS.get(name) == segment for name in _class_names(module)):
            kept.append(segment)
        module = getattr(module, segment, None)
    return ".".join(kept)


def wrapped_attribute(module: object) -> str | None:
    """The attribute of a known wrapper that has the module inside; None of another module."""
    return next((_WRAPPERS[name] for name in _class_names(module) if name in _WRAPPERS), None)


def _class_names(value: object) -> list[str]:
    return [f"{c.__module__}.{c.__qualname__}" for c in type(value).__mro__]


def is_ours(module: object) -> bool:
    """Whether a module was made here: a graph, or a model of which parts are tuned."""
    return isinstance(module, UtcGraphModule) or (isinstance(module, nn.Module) and KEPT in vars(module))


def _way_in(model: object, verb: str) -> str | None:
    """How to come from a wrapper that is not known to the one module of utcompile inside."""
    for name in _class_names(model):
        if (fix := _FIXES.get(name)) is not None:
            return fix
    modules = (
        model.modules() if isinstance(model, nn.Module) else vars(model).values() if hasattr(model, "__dict__") else ()
    )
    inside = [m for m in modules if is_ours(m)]
    if not inside:
        return None
    places = [n for n, m in model.named_modules() if m is inside[0]] if isinstance(model, nn.Module) else []
    places = places or [n for n, v in vars(model).items() if v is inside[0]]
    return f"pass the model that it wraps: {verb}(model.{places[0]}, …)"
