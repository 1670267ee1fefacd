"""What to do about a near miss: a hint for each mistake that people make.

1. A wrong operation of the right class: `relu` where the model has `gelu`.
2. A step that some models lack: `norm(x)` where there is none.
3. An operation in between that the pattern does not allow for: a dropout before the linear.
4. A wrong attribute: `groups=1` on a depthwise convolution.
5. A class that asks more than it seems to: `pointwise` on a 3×3 convolution.
6. One name for what are two values.
7. A value in `where:` that is unknown.
8. A glob that matches nothing, or is one segment short.
9. An operation, module or parameter that the model has nowhere.
10. A path of a list, `h.path in (…)`, that is none of the model's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from torch import fx, nn
from torch.nn.utils.rnn import PackedSequence

from utcompile.errors import did_you_mean
from utcompile.graph import Frame, GraphView, info, is_state, module_operation, place_of, tensor, value_of
from utcompile.matching.conditions import within
from utcompile.matching.engine import Bindings, Trace, same_attribute
from utcompile.matching.kin import FAMILIES, families
from utcompile.matching.places import nearest_path, places, wider_glob
from utcompile.rules import (
    Attribute,
    Call,
    Comparison,
    Head,
    Literal,
    MatchModule,
    MatchOperation,
    MatchParameter,
    MatchPattern,
    Operand,
    Product,
    Rule,
    Scope,
    glob_match,
)
from utcompile.text import listed

_BETWEEN = ("norm", "dropout", "activation")  # what models put between two layers
_OPTIONAL = frozenset(("norm", "dropout"))  # and what some leave out
_NEAR = 3  # operations that may stand in between


def hint(trace: Trace, view: GraphView) -> str | None:
    """What to do about the furthest failure at one place."""
    if trace.steps_left < 0 or trace.node is None:
        return trace.fix
    if trace.call is None:  # case 6
        return "a name stands for one value: give the second another name, if it may differ"
    return operation_hint(trace.call, trace.node, view)


def operation_hint(call: Call, node: fx.Node, view: GraphView) -> str | None:
    """What to write instead of a call, for a node that it does not match."""
    op, classes = view.operations[node], view.classes[node]
    for head in call.heads:
        if head.name in classes and head.attributes:  # case 4
            return _attributes_fix(head, node, view)
        if why := _not_a(head.name, node, view):  # case 5
            return why
    names = [head.name for head in call.heads if not head.is_skip]
    operands = call.text.partition("(")[2] if len(call.heads) == 1 else call.text.rpartition(")(")[2]
    wanted = {family for name in names for family in families(name)}
    shared = next((f for f in FAMILIES if f in wanted & classes), None)
    if shared is not None and shared not in names:  # case 1
        exact = op.name if len(names) == 1 else f"({' | '.join([*names, op.name])})"
        return f"write {exact}({operands}, or {shared}({operands} for any {shared}"
    between = next((c for c in _BETWEEN if c in classes), None)
    if between and _soon(call.heads, node, view):  # case 3
        return f"a {op.name} follows it here: allow for that with ({between} | skip)({call.text})"
    if len(call.heads) == 1 and wanted & _OPTIONAL:  # case 2
        return f"where there may be none, write ({names[0]} | skip)({operands}"
    return None


def _attributes_fix(head: Head, node: fx.Node, view: GraphView) -> str:
    has = view.operations[node].attributes
    unknown = [k for k in head.attributes if k not in has]
    if unknown:
        name = view.operations[node].name
        return f"{name} has no attribute {' and no '.join(unknown)}; its attributes: {', '.join(sorted(has)) or 'none'}"
    wrong = {k: has[k] for k, v in head.attributes.items() if not same_attribute(has[k], v)}
    values = ", ".join(f"{k}={v!r}" for k, v in wrong.items())
    also = (
        ", or depthwise_conv for depthwise ones" if "groups" in wrong and "depthwise_conv" in view.classes[node] else ""
    )
    return f"leave out {' and '.join(f'{k}=' for k in wrong)}, or write {values}{also}"


def _not_a(name: str, node: fx.Node, view: GraphView) -> str | None:
    op = view.operations[node]
    if "conv" not in view.classes[node]:
        return None
    groups, shape = op.attributes.get("groups", 1), info(node).weight_shape
    if name == "pointwise" and "pointwise" not in view.classes[node]:
        why = f"its groups are {groups}" if groups != 1 else f"its kernel is {'x'.join(map(str, shape[2:]))}"
        return (
            f"pointwise is a linear or an ungrouped convolution with a kernel of 1, and {why}: conv is any convolution"
        )
    if name == "depthwise_conv" and "depthwise_conv" not in view.classes[node]:
        return f"depthwise_conv has as many groups as channels, and its groups are {groups}: conv is any convolution"
    return None


def _soon(heads: Sequence[Head], node: fx.Node, view: GraphView) -> bool:
    """Whether an operation of one of these names comes shortly before a node, through what models put in between."""
    current = node
    for _ in range(_NEAR):
        inputs = view.operations[current].inputs
        if len(inputs) != 1:
            return False
        current = view.without_layout(inputs[0])
        if any(h.name in view.classes[current] for h in heads):
            return True
        if not view.classes[current] & set(_BETWEEN):
            return False
    return False


def unknown(comparison: Comparison, env: Bindings, view: GraphView) -> tuple[str, str | None]:
    """Which operands of a failed comparison are unknown and why; what to do about it."""
    reasons, fix = [], None
    for attribute in _attributes(comparison.operands):
        node = env[attribute.capture]
        inner = view.without_layout(node)
        op, name = view.operations[inner], f"{attribute.capture}.{'.'.join(attribute.path)}"
        if attribute.path == ("channels",) and view.channels(node) is None:
            why = "no operation that makes or reads it says which axis holds the channels"
            reasons.append(f"{name} is unknown: {tensor(node)} is made by {op.name}, and {why}")
            fix = (
                f"compare {attribute.capture}.shape or {attribute.capture}.rank, or a value that a layer or norm makes"
            )
        elif (
            attribute.path[0] == "op"
            and attribute.path != ("op", "name")
            and op.attributes.get(attribute.path[1]) is None
        ):
            has = ", ".join(sorted(op.attributes)) or "none"
            reasons.append(
                f"{name} is unknown: {op.name} has no attribute '{attribute.path[1]}'; its attributes: {has}"
            )
            fix = f"name the capture of an operation that has '{attribute.path[1]}'"
    return "; ".join(dict.fromkeys(reasons)), fix


def _attributes(operands: Iterable[Operand]) -> list[Attribute]:
    found: list[Attribute] = []
    for operand in operands:
        if isinstance(operand, Attribute):
            found.append(operand)
        elif isinstance(operand, Product):
            found += _attributes((operand.left, operand.right))
    return found


def scope_hint(scope: Scope, frames: Sequence[Frame], env: Bindings, view: GraphView) -> tuple[str, str | None]:
    """Why a scope does not enclose a match, where there is more to say than where the match is; what to do."""
    partly = sorted(name for name, node in env.items() if within(scope, view.frames(node)))
    if partly:
        what = scope.module or scope.cls
        return f"only {', '.join(partly)} of it in {what}", "name a call that encloses the whole match"
    every = places(view)
    of_class = [p for p, cls in every.items() if scope.cls is None or glob_match(scope.cls, cls)]
    by_path = [p for p in every if scope.module is None or glob_match(scope.module, p)]
    if set(of_class) & set(by_path):
        return "", None
    if not of_class:
        return f"no module of the model is a {scope.cls}", _class_fix(scope.cls or "", every.values())
    here = [f.path for f in frames if scope.cls is None or glob_match(scope.cls, f.cls)]
    found = scope.module and (wider_glob(scope.module, here) or wider_glob(scope.module, of_class))
    fix = f"write module: {found!r}" if found else "see `utcompile inspect` for the paths"
    if not by_path:
        return f"no module of the model matches {scope.module!r}", fix
    classes = listed(sorted({every[p] for p in by_path}))
    return f"what {scope.module!r} matches is of class {classes}, not {scope.cls}", fix


def _class_fix(glob: str, classes: Iterable[str]) -> str:
    return did_you_mean(glob, set(classes))


def absent(rule: Rule, view: GraphView) -> tuple[str, str | None]:
    """Why a rule has not one place where it could begin to match."""
    wanted = rule.match
    if packed := _reads_packed(wanted, view):
        return packed
    if isinstance(wanted, MatchModule):
        why, fix = scope_hint(Scope(wanted.module, wanted.cls), (), {}, view)
        return (why, fix) if why else ("such modules are never called", None)
    if isinstance(wanted, MatchParameter):
        names = list(view.parameters)
        read = [str(n.target) for n in view.nodes if n.op == "get_attr" and is_state(n) and str(n.target) in names]
        owned = [n for n in names if glob_match(wanted.parameter, n)]
        if owned:
            why = f"{listed(owned)}: these belong to a layer, and match: {{parameter: …}} is for those that none owns"
            return why, "match the layer, as {op: …} or {module: …}, and tune its weight"
        found = wider_glob(wanted.parameter, read)
        has = f"; parameters that no layer owns: {listed(read)}" if read else "; the model has none that no layer owns"
        return f"no such parameter{has}", f"write parameter: {found!r}" if found else None
    heads = wanted.heads if isinstance(wanted, MatchOperation) else _last_heads(wanted)
    return _no_operation(heads, view)


def _reads_packed(wanted: object, view: GraphView) -> tuple[str, str] | None:
    """A recurrent layer that reads a PackedSequence is there, and no rule finds it."""
    for node in view.nodes:
        layer = view.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(layer, nn.RNNBase) or all(n.target is not PackedSequence for n in node.all_input_nodes):
            continue
        path, name = str(node.target), module_operation(layer)[0]
        if isinstance(wanted, MatchModule):
            is_meant = within(Scope(wanted.module, wanted.cls), [Frame(path, type(layer).__name__)])
        else:
            is_meant = isinstance(wanted, MatchOperation) and any(name == h.name for h in wanted.heads)
        if is_meant:
            why = f"the {name} at {path} reads a PackedSequence, which is no tensor: its weights cannot be tuned"
            return why, "tune the layers before and after it, or let it read a padded batch"
    return None


def _last_heads(wanted: MatchPattern) -> tuple[Head, ...]:
    values = [spelling.steps[-1].value for spelling in wanted.pattern.spellings]
    return tuple(head for value in values if isinstance(value, Call) for head in value.heads)


def unlisted(rule: Rule, taken: Sequence[Bindings], view: GraphView) -> tuple[str, str] | None:
    """Which paths of a list in `where:` have no match, and what to write instead (case 10)."""
    for comparison in rule.where:
        left, *others = comparison.operands
        if not isinstance(left, Attribute) or left.path != ("path",) or comparison.operators != ("in",):
            continue
        paths = others[0].value if isinstance(others[0], Literal) else None
        met = {place_of(env[left.capture]) for env in taken}
        missing = [p for p in paths if isinstance(p, str) and p not in met] if isinstance(paths, tuple) else []
        if missing:
            known = places(view)
            absent = [p for p in missing if p not in known]
            fix = nearest_path(absent[0], known) if absent else "see `utcompile inspect` for what is computed there"
            return f"nothing matches at {listed(missing)}", fix
    return None


def _no_operation(heads: Sequence[Head], view: GraphView) -> tuple[str, str | None]:
    names = list(dict.fromkeys(h.name for h in heads if not h.is_skip))
    if "branch_tail" in names:
        return "the model has no residual addition, whose operand branch_tail is", None
    kinds = {f for name in names for f in families(name)}
    near = Counter(view.operations[n].name for f in kinds for n in view.by_class.get(f, ()))
    has = f"; it has {', '.join(f'{name} ({n})' for name, n in near.most_common(6))}" if near else ""
    fix = f"write {near.most_common(1)[0][0]}, or {sorted(kinds)[0]} for any" if near else "see `utcompile inspect`"
    return f"the model has no {' or '.join(names) or 'such operation'}{has}", fix


def other_attributes(wanted: MatchOperation, view: GraphView) -> list[tuple[fx.Node, str, str, str | None]]:
    """Operations that `match: {op: …}` names, with other attributes: what was written, what differs, what to do."""
    found = []
    text = " | ".join(map(_written, wanted.heads))
    for node in sorted({n for h in wanted.heads for n in view.by_class[h.name]}, key=view.position.__getitem__):
        classes, has = view.classes[node], view.operations[node].attributes
        heads = [h for h in wanted.heads if h.name in classes]
        wrong = [[k for k, v in h.attributes.items() if not same_attribute(has.get(k), v)] for h in heads]
        if value_of(node) is None or not all(wrong):
            continue
        differ = [f"{k}={heads[0].attributes[k]!r}, and it is {has.get(k)!r}" for k in wrong[0]]
        fix = operation_hint(Call(tuple(heads[:1]), (), f"{heads[0].name}()"), node, view)
        found.append((node, f"op: {text}", f"the rule wants {', '.join(differ)}", fix))
    return found


def _written(head: Head) -> str:
    attributes = ", ".join(f"{k}={v!r}" for k, v in head.attributes.items())
    return f"{head.name}({attributes})" if attributes else head.name
