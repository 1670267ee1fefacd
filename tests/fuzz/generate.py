"""From a seed to a program."""

from __future__ import annotations

import re
from random import Random

from .program import Call, Program, Statement
from .statements import Writer

# what is drawn, and how often: most models compute, some remember, some read
_KINDS = {"number": 3, "slice": 2, "pad": 2, "parts": 2, "loop": 1.5, "branch": 2, "rank": 1, "shape": 4, "layer": 3}
_OTHERS = {"write": 2.5, "state": 2.0, "value": 2.0, "container": 4.0, "flag": 1.0}
_EXTRAS = {
    "k": "value", "s": "value", "pair_sizes": "value", "flag_tensor": "value",
    "cfg": "container", "xs": "container", "tree": "container", "num": "container",
    "flag": "container", "word": "container", "factor": "container", "extra": "container",
}  # fmt: skip

_STATEMENT_OF_INNER = Statement("h = self.inner(h, x)")
_N = Statement("n = 3")


def generate(seed: int) -> Program:
    """The program of a seed: always the same."""
    r = Random(seed)
    family = r.choices(["tokens", "sequence", "image"], [3, 5, 3])[0]
    image, tokens = family == "image", family == "tokens"
    themes = [name for name in _OTHERS if r.random() < 0.3]
    kinds = _KINDS | {name: _OTHERS[name] for name in themes}
    extras = [n for n, theme in _EXTRAS.items() if theme in themes]
    inputs = ("x", *r.sample(extras, min(len(extras), r.randint(1, 2))))
    writer = Writer(r, image=image, tokens=tokens, kinds=kinds, inputs=inputs[1:])
    if tokens:
        writer.needs("self.embed = nn.Embedding(20, 4)")
    body = list(_body(writer, r.randint(1, 5)))
    inner = Writer(r, image=image, tokens=tokens, kinds={k: v for k, v in kinds.items() if k != "container"}, inputs=())
    inside = ()
    if r.random() < 0.2:
        inside = _body(inner, r.randint(1, 2))
        writer.needs("self.inner = Inner()")
        body.insert(r.randint(0, len(body)), _STATEMENT_OF_INNER)
    if any("n" in _names(s) for s in body):
        body.insert(0, _N)
    inside = (_N, *inside) if any("n" in _names(s) for s in inside) else inside
    inputs = ("x", *(n for n in inputs[1:] if n in writer.used))
    returns = r.choices(["h", "(h, h.mean())", '{"h": h, "size": h.shape[1]}', "(h, n)"], [12, 1, 1, 1])[0]
    if returns == "(h, n)" and _N not in body:
        body.insert(0, _N)
    dynamic, example, calls = _calls(r, family, inputs)
    return Program(
        seed, inputs, tuple(writer.init), tuple(body), tuple(inner.init), inside, returns, dynamic, example, calls
    )


def _body(writer: Writer, length: int) -> tuple[Statement, ...]:
    return tuple(writer.statement() for _ in range(length))


def _names(statement: Statement) -> set[str]:
    return set(re.findall(r"[A-Za-z_]\w*", "\n".join(statement.lines())))


def _calls(r: Random, family: str, inputs: tuple[str, ...]) -> tuple[str, Call, tuple[tuple[Call, ...], ...]]:
    base = {
        "B": r.choice([1, 2, 2, 3, 4, 6]),
        "L": r.choice([4, 5, 7, 8, 12]),
        "H": r.choice([6, 8, 12, 16]),
        "W": r.choice([8, 9, 16]),
    }
    named = "B" if family != "image" else "BHW"
    dynamic = "None"
    if family == "tokens":
        named = "BL"
    elif r.random() < 0.7:
        named, dims = ("BL", '{0: "B", 1: "L"}') if family == "sequence" else ("BHW", '{0: "B", 2: "H", 3: "W"}')
        more = ', "xs": {0: "B"}' if "xs" in inputs else ""
        dynamic = f'{{"x": {dims}{more}}}'
    elif family == "image":
        named = "B"
    scalars = _scalars(r)
    values = {name: r.choice(options) for name, options in scalars.items()}

    def call(label: str, sizes: dict[str, int], given: dict[str, str], seed: int, **style: bool) -> Call:
        return Call(
            label, tuple(_argument(n, family, sizes, given, seed, **style) for n in inputs), style.get("grad", True)
        )

    def other(names: str) -> dict[str, int]:
        larger = {
            "B": [1, 1, 2, 5, 7, 17],
            "L": [1, 2, 3, 6, 9, 10, 13, 20, 33],
            "H": [5, 7, 9, 10, 18, 24, 33],
            "W": [5, 7, 10, 13, 24, 31],
        }
        return base | {n: r.choice([v for v in larger[n] if v != base[n]]) for n in names}

    example = call("example", base, values, 1)
    sequences = [
        (call("other values", base, values, 2), call("second call", base, values, 3)),
        (call("other batch", other("B"), values, 4),),
        (call("other batch", other("B"), values, 5), call("back at the example's sizes", base, values, 6)),
    ]
    if len(named) > 1:
        sequences += [(call("other sizes", other(named), values, s),) for s in (7, 8)]
        sequences += [(call("other lengths", other(named[1:]), values, s),) for s in (9, 10)]
    if len(inputs) > 1:
        changed = [n for n in inputs[1:] if n in scalars]
        for s in (11, 12):
            sequences.append((call("other scalars", base, values | {n: r.choice(scalars[n]) for n in changed}, s),))
    style = r.choice(["needs_grad", "strided", "no_grad"])
    if r.random() < 0.25:
        if style == "no_grad":
            sequences.append((call("no_grad", base, values, 13, grad=False),))
        elif family != "tokens":
            sequences.append((call(style, base, values, 13, **{style: True}),))
    return dynamic, example, tuple(sequences)


def _scalars(r: Random) -> dict[str, list[str]]:
    return {
        "k": [f"torch.tensor({v})" for v in (1, 2, 3, 5, 6)],
        "s": [f"torch.tensor({v})" for v in (0.25, 0.75, 2.0, -1.0)],
        "pair_sizes": [f"torch.tensor([{a}, {b}])" for a, b in ((1, 2), (3, 2), (2, 5), (4, 4))],
        "flag_tensor": ["torch.tensor(True)", "torch.tensor(False)"],
        "num": ["1", "2", "3", "5"],
        "flag": ["True", "False"],
        "word": ["'fast'", "'slow'", "'other'"],
        "factor": ["0.5", "2.0", "1.0", "3.0"],
        "extra": ["None", "rand(3, seed=5)", "rand(2, 2, seed=6)"],
        "cfg": [
            "{'scale': 2.0, 'bias': rand(5, seed=1), 'steps': 2, 'mode': 'fast'}",
            "{'scale': 3.0, 'bias': rand(5, seed=2), 'steps': 2, 'mode': 'fast'}",
            "{'scale': 2.0, 'bias': rand(5, seed=2), 'steps': 3, 'mode': 'slow'}",
            "{'scale': 2.0, 'bias': rand(5, seed=2), 'steps': 2, 'mode': 'fast', 'bonus': 4}",
            "{'mode': 'fast', 'steps': 2, 'bias': rand(5, seed=2), 'scale': 2.0}",
        ],
        "xs": [
            "[rand({B}, 4, seed={s})]", "[rand({B}, 4, seed={s}), rand({B}, 4, seed=3)]",
            "[rand({B}, 4, seed={s})] * 3", "(rand({B}, 4, seed={s}), rand({B}, 4, seed=3))",
        ],
        "tree": [
            "{'a': (2.0, rand(3, seed=1)), 'b': {'c': rand(5, seed=2), 'on': True}}",
            "{'a': (2.0, rand(3, seed=3)), 'b': {'c': rand(5, seed=2), 'on': True}}",
            "{'a': (3.0, rand(3, seed=1)), 'b': {'c': rand(5, seed=2), 'on': True}}",
            "{'a': (2.0, rand(3, seed=1)), 'b': {'c': rand(5, seed=2), 'on': False}}",
            "{'a': [2.0, rand(3, seed=1)], 'b': {'c': rand(5, seed=2), 'on': True}}",
        ],
    }  # fmt: skip


def _argument(
    name: str, family: str, sizes: dict[str, int], given: dict[str, str], seed: int, *,
    needs_grad: bool = False, strided: bool = False, grad: bool = True,
) -> str:  # fmt: skip
    b, length, h, w = (sizes[n] for n in "BLHW")
    if name != "x":
        return given[name].replace("{B}", str(b)).replace("{s}", str(seed))
    if family == "tokens":
        return f"ids({b}, {length}, seed={seed})"
    shape = (b, 4, h, w) if family == "image" else (b, length, 4)
    if strided:
        return f"rand({', '.join(map(str, shape[::-1]))}, seed={seed}).permute({', '.join(map(str, range(len(shape))[::-1]))})"
    made = f"rand({', '.join(map(str, shape))}, seed={seed})"
    return f"{made}.requires_grad_()" if needs_grad else made
