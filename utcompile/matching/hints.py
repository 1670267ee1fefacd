"""Hints for near misses: how to fix each of the common mistakes.

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
from utcompile.matching.engine import Bindings, same_attribute
from utcompile.matching.kin import FAMILIES, families
from utcompile.matching.places import nearest_path, places, wider_glob
from utcompile.matching.trace import Trace
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

_BETWEEN = ("norm", "dropout", "activation")  # operations that models put between two layers
_OPTIONAL = frozenset(("norm", "dropout"))  # operations that some models leave out
_NEAR = 3  # operations that may be in between


def hint(trace: Trace, view: GraphView) -> str | None:
    """How to fix the nearest miss at one place."""
    if trace.steps_left < 0 or trace.node is None:
        return trace.fix
    if trace.call is None:  # case 6
        return "a name has one value: if the second value may differ, give it another name"
    return operation_hint(trace.call, trace.node, view)


def operation_hint(call: Call, node: fx.Node, view: GraphView) -> str | None:
    """The text to write instead of a call that does not match a node."""
    op, classes = view.operations[node], view.classes[node]
    for head in call.heads:
        if head.name in classes and head.attributes:  # case 4
            return _attributes_fix(head, node, view)
        if why := _not_a(head.name, node, view):  # case 5
            return why
    names = [head.name for head in call.heads if not head.is_skip]
    operands = call.text.partition("(")[2] if len(call.heads) == 1 else call.text.rpartition(")(")[2]
    match = {family for name in names for family in families(name)}
    shared = next((f for f in FAMILIES if f in match & classes), None)
    if shared is not None and shared not in names:  # case 1
        exact = op.name if len(names) == 1 else f"({' | '.join([*names, op.name])})"
        return f"write {exact}({operands}, or {shared}({operands} for any {shared}"
    between = next((c for c in _BETWEEN if c in classes), None)
    if between and _soon(call.heads, node, view):  # case 3
        return f"a {op.name} follows here: allow it with ({between} | skip)({call.text})"
    if len(call.heads) == 1 and match & _OPTIONAL:  # case 2
        return f"if it may be missing, write ({names[0]} | skip)({operands}"
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
    """The unknown operands of a failed comparison with the reasons, and how to fix them."""
    reasons, fix = [], None
    for attribute in _attributes(comparison.operands):
        node = env[attribute.capture]
        inner = view.without_layout(node)
        op, name = view.operations[inner], f"{attribute.capture}.{'.'.join(attribute.path)}"
        if attribute.path == ("channels",) and view.channels(node) is None:
            why = "no operation that makes or reads the value shows which axis has the channels"
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
    """Why a scope does not enclose a match, if that is more than the place of the match, and how to fix it."""
    partly = sorted(name for name, node in env.items() if within(scope, view.frames(node)))
    if partly:
        what = scope.module or scope.cls
        return f"only {', '.join(partly)} of it in {what}", "name a module whose call encloses the whole match"
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
    return f"the modules that {scope.module!r} matches are of class {classes}, not {scope.cls}", fix


def _class_fix(glob: str, classes: Iterable[str]) -> str:
    return did_you_mean(glob, set(classes))


def absent(rule: Rule, view: GraphView) -> tuple[str, str | None]:
    """Why no operation of the graph can be the last line of the rule's pattern."""
    match = rule.match
    if packed := _reads_packed(match, view):
        return packed
    if isinstance(match, MatchModule):
        why, fix = scope_hint(Scope(match.module, match.cls), (), {}, view)
        return (why, fix) if why else ("the model never calls such modules", None)
    if isinstance(match, MatchParameter):
        names = list(view.parameters)
        read = [str(n.target) for n in view.nodes if n.op == "get_attr" and is_state(n) and str(n.target) in names]
        owned = [n for n in names if glob_match(match.parameter, n)]
        if owned:
            why = f"{listed(owned)} belong to layers, and match: {{parameter: …}} is for parameters that no layer owns"
            return why, "match the layer, as {op: …} or {module: …}, and tune its weight"
        found = wider_glob(match.parameter, read)
        has = f"; parameters that no layer owns: {listed(read)}" if read else "; the model has none that no layer owns"
        return f"no such parameter{has}", f"write parameter: {found!r}" if found else None
    heads = match.heads if isinstance(match, MatchOperation) else _last_heads(match)
    return _no_operation(heads, view)


def _reads_packed(match: object, view: GraphView) -> tuple[str, str] | None:
    """The hint for a recurrent layer that reads a PackedSequence, which no rule matches."""
    for node in view.nodes:
        layer = view.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(layer, nn.RNNBase) or all(n.target is not PackedSequence for n in node.all_input_nodes):
            continue
        path, name = str(node.target), module_operation(layer)[0]
        if isinstance(match, MatchModule):
            is_meant = within(Scope(match.module, match.cls), [Frame(path, type(layer).__name__)])
        else:
            is_meant = isinstance(match, MatchOperation) and any(name == h.name for h in match.heads)
        if is_meant:
            why = f"the {name} at {path} reads a PackedSequence, not a tensor: its weights cannot be tuned"
            return why, "tune the layers before and after it, or give it a padded batch"
    return None


def _last_heads(match: MatchPattern) -> tuple[Head, ...]:
    values = [spelling.steps[-1].value for spelling in match.pattern.spellings]
    return tuple(head for value in values if isinstance(value, Call) for head in value.heads)


def unlisted(rule: Rule, taken: Sequence[Bindings], view: GraphView) -> tuple[str, str] | None:
    """The paths of a list in `where:` that have no match, and the text to write instead (case 10)."""
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
            fix = nearest_path(absent[0], known) if absent else "run `utcompile inspect` to see the operations there"
            return f"nothing matches at {listed(missing)}", fix
    return None


def _no_operation(heads: Sequence[Head], view: GraphView) -> tuple[str, str | None]:
    names = list(dict.fromkeys(h.name for h in heads if not h.is_skip))
    if "branch_tail" in names:
        return "the model has no residual addition, and branch_tail is an operand of one", None
    kinds = {f for name in names for f in families(name)}
    near = Counter(view.operations[n].name for f in kinds for n in view.by_class.get(f, ()))
    has = f"; it has {', '.join(f'{name} ({n})' for name, n in near.most_common(6))}" if near else ""
    fix = f"write {near.most_common(1)[0][0]}, or {sorted(kinds)[0]} for any" if near else "see `utcompile inspect`"
    return f"the model has no {' or '.join(names) or 'such operation'}{has}", fix


def other_attributes(match: MatchOperation, view: GraphView) -> list[tuple[fx.Node, str, str, str | None]]:
    """Operations that `match: {op: …}` names, with other attributes: the text, the differences, and the fix."""
    found = []
    text = " | ".join(map(_written, match.heads))
    for node in sorted({n for h in match.heads for n in view.by_class[h.name]}, key=view.position.__getitem__):
        classes, has = view.classes[node], view.operations[node].attributes
        heads = [h for h in match.heads if h.name in classes]
        wrong = [[k for k, v in h.attributes.items() if not same_attribute(has.get(k), v)] for h in heads]
        if value_of(node) is None or not all(wrong):
            continue
        differ = [f"{k}={heads[0].attributes[k]!r}, and it is {has.get(k)!r}" for k in wrong[0]]
        fix = operation_hint(Call(tuple(heads[:1]), (), f"{heads[0].name}()"), node, view)
        found.append((node, f"op: {text}", f"the rule needs {', '.join(differ)}", fix))
    return found


def _written(head: Head) -> str:
    attributes = ", ".join(f"{k}={v!r}" for k, v in head.attributes.items())
    return f"{head.name}({attributes})" if attributes else head.name
