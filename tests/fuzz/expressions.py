"""Expressions of sizes: what Python code computes from shapes, and asks of them."""

from __future__ import annotations

from random import Random

from .program import Expr

_INTEGERS = """
{0} // {c}|{0} % {c}|-{0} % {c}|-(-{0} // {c})|{0} + {c}|{0} - {c}|{0} * {c}|{c} - {0}|min({0}, {c})|max({0}, {c})
round({0} / {c})|int({0} / {c})|int({0} * 0.7)|math.floor({0} / {c})|math.ceil({0} / {c})|math.trunc({0} * 0.4)
math.isqrt(abs({0}))|int(math.sqrt(abs({0})))|int(math.log2(abs({0}) + 1))|int(math.log(abs({0}) + 1) * {c})
{0} & {c}|{0} | {c}|{0} ^ {c}|{0} >> 1|{0} << 1|1 << min(abs({0}), 3)|~{0} % {c}|abs({0} - {c})|abs({0})
TABLE[{0} % 8]|TABLE[min(abs({0}), 7)]|NAMED.get({0}, 1)|NAMED[{0}] if {0} in NAMED else {c}|TABLE.index({0} % 3 + 1)
divmod({0}, {c})[0]|divmod({0}, {c})[1]|pow(abs({0}), 2, 7)|len(range(0, {0}, {c}))|sum(range(min({0}, 9)))
math.gcd({0}, {c})|({0}).bit_length()|int({0} > {c})|({0} > {c}) * {c}|sorted([{0}, {1}, {c}])[1]|min({0}, {1})|max({0}, {1})
{0} + {1}|{0} - {1}|abs({0} - {1})|{0} * {1} % 7|int(np.ceil({0} / {c}))|int(round({0} ** 0.5))|({0} + {c} - 1) // {c} * {c}
{0} if {?} else {1}|sum([{0}, {1}])|max(x.shape)|min(h.shape)|len([i for i in range(min({0}, 9)) if i % 2])|int({0})
len(str({0}))|int(str(abs({0}))[0])|int(format({0})) % 7|int('%d' % {0})|len([0] * min({0}, 9))|sum([1] * min({0}, 9))|bin(abs({0})).count("1")
int(np.arange(min(abs({0}), 9)).sum())|np.zeros(abs({0}) % 9).shape[0]|math.prod(h.shape[:2])|torch.Size([abs({0})]).numel()
max(range(min({0}, 9)), default=2)|len({{{0}, {c}}})|len({{{0}, {1}}})|hash({0}) % 5|operator.index({0})|round({0}, -1)
len([*zip(range(min({0}, 9)), range({c}))])|list(range(min(abs({0}), 9) + 1))[-1]|"abcdefghijkl"[:{0}].count("c")
functools.reduce(max, h.shape)|next((i for i in range(9) if i * {c} >= {0}), 9)|[1, 2, 3, 4][min(abs({0}), 3)]|{{3: 1}}.get({0}, 2)
bisect.bisect((2, 4, 8, 16), {0})|sum(s > {c} for s in h.shape)|any(s == {c} for s in x.shape) + 1|(({0} > {c}) is True) + 1|x.ndim + {0}
""".strip().replace("\n", "|")
# `|` is an operator too
INTEGERS = list(_INTEGERS.replace("{0} | {c}", "{0} \0 {c}").split("|"))
FLOATS = (
    "{0} / {c}|math.sqrt(abs({0}))|abs({0}) ** 0.5|(abs({0}) + 1) ** -0.5|math.log(abs({0}) + 1)|1.0 / max({0}, 1)|float({0})"
    "|math.exp(-abs({0}) / 8)|round({0} / 3, 2)|0.5 * {0}|{0} * 0.25 + {c}|1 - {0} / 10|float(np.sqrt(abs({0})))|{0} / max({1}, 1)"
    "|2.0 if {?} else 0.5|min({0} / 4, 1.5)|max(0.1, {0} / 8)|math.cos({0})|(0.5, 1.5, 2.5)[{0} % 3]|{0} % 3 / 2"
).split("|")
CONDITIONS = (
    "{0} > {C}|{0} >= {C}|{0} < {C}|{0} <= {C}|{0} == {C}|{0} != {C}|{0} % 2 == 0|{0} % {c}|not {0} % {c}|{0} in (1, 4, 9)"
    "|{0} not in NAMED|2 < {0} <= 9|{0} // 4|bool({0} // {c})|{0} > {1}|{0} == {1}|h.shape == x.shape|h.shape[1:] == (5, 4)"
    "|({0}, {c}) < ({1}, {C})|h.numel() > 99|any(s == 1 for s in h.shape)|all(s > 2 for s in h.shape)|h.dim() == 3"
    "|{0} > {C} and {1} > {c}|{0} > {C} or {1} == 1|not {0} > {c}|isinstance({0}, int)|h.shape[0] == 1|x.shape[0] > {C}|{0} > 7.5"
    "|{{4: True}}.get({0}, False)|{0} is not None and {0} > {C}|{0}.__gt__({C})"
    "|{0} / 2 > {c}|len(x) > {c}|h.size(1) > {C}|max({0}, {1}) > {C}|math.log2(abs({0}) + 1) > 3|{0} ** 0.5 == int({0} ** 0.5)"
).split("|")


class Expressions:
    """Draws expressions over the sizes of `h` and `x`, and the integer `n`.

    Args:
        axes: the dimensions of `h` that vary between calls.
        input_axes: those of `x`.
    """

    def __init__(self, random: Random, axes: tuple[int, ...], input_axes: tuple[int, ...]) -> None:
        self.random, self.axes, self.input_axes = random, axes, input_axes

    def axis(self) -> int:
        return self.random.choice(self.axes)

    def leaf(self) -> Expr:
        d, i = self.axis(), self.random.choice(self.input_axes)
        kinds = [f"h.shape[{d}]"] * 4 + [f"h.size({d})", f"x.shape[{i}]", f"x.shape[{i}]", "len(h)", "n", "h.numel()"]
        return Expr(self.random.choice(kinds))

    def integer(self, depth: int = 2) -> Expr:
        """Any integer that follows from sizes."""
        if depth == 0 or self.random.random() < 0.2:
            return self.leaf()
        return self._fill(self.random.choice(INTEGERS), depth)

    def count(self) -> Expr:
        """A small one, from 0 on."""
        text = self.random.choice(["abs({0}) % 6", "min(abs({0}), 6)", "max(0, min({0}, 5))", "abs({0}) // 3 % 5"])
        return Expr(text, (self.integer(self.random.choice([0, 1, 2])),))

    def float(self) -> Expr:
        return self._fill(self.random.choice(FLOATS), 2)

    def condition(self) -> Expr:
        return self._fill(self.random.choice(CONDITIONS), 2)

    def _fill(self, text: str, depth: int) -> Expr:
        text = text.replace("\0", "|")
        text = text.replace("{c}", str(self.random.randint(2, 5))).replace("{C}", str(self.random.randint(1, 14)))
        parts = [self.integer(depth - 1 - self.random.randint(0, 1)) if depth > 1 else self.leaf() for _ in range(2)]
        bare = text in ("{0}", "{1}")
        parts = [p if bare or not p.parts else Expr("({0})", (p,)) for p in parts]
        if "{?}" in text:
            text, parts = text.replace("{?}", "{2}"), [*parts, self._fill(self.random.choice(CONDITIONS[:14]), 1)]
        return Expr(text, tuple(parts))
