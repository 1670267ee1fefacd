"""The operations that the zoo's models are made of: a list that is kept, and how it is read off a captured graph."""

from __future__ import annotations

from pathlib import Path

from torch import fx, nn

LIST = Path(__file__).with_name("zoo_operations.txt")
# calls of capture and of models that are no operations: guards, dataclasses of outputs, custom autograd functions
_OURS = ("utcompile", "transformers", "timm", "torchvision", "builtins.dict")


def spelling_of(node: fx.Node, root: nn.Module) -> str | None:
    """`function torch.relu`, `method relu_`, `module Linear`; None where a node is no call of torch."""
    if node.op == "call_module":
        leaf = root.get_submodule(str(node.target))
        return (
            f"module {type(leaf).__name__.removeprefix('Parametrized')}"
            if type(leaf).__module__.startswith("torch.nn")
            else None
        )
    if node.op == "call_method":
        return f"method {node.target}"
    if node.op != "call_function":
        return None
    target = node.target if hasattr(node.target, "__qualname__") else type(node.target)
    home = getattr(target, "__module__", None) or "torch"  # torch's built-in functions have no module
    return None if home.startswith(_OURS) else f"function {home}.{target.__name__}"


def known_spellings() -> frozenset[str]:
    """The committed list."""
    return frozenset(LIST.read_text().split("\n")) - {""}
