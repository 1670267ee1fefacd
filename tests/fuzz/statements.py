"""The statements of random models: each reads `h` and leaves a tensor of the same rank and channels in it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from .expressions import Expressions
from .program import Expr, Statement

Maker = Callable[["Writer"], Statement]
KINDS: dict[str, list[tuple[int, Maker]]] = {}


def kind(name: str, weight: int = 2) -> Callable[[Maker], Maker]:
    """Register a maker of statements under a kind; a kind is drawn first, then a maker of it."""

    def register(maker: Maker) -> Maker:
        KINDS.setdefault(name, []).append((weight, maker))
        return maker

    return register


class Writer:
    """Writes one forward: draws statements, and collects what they need in `__init__` and as inputs.

    Args:
        image: `h` is (B, 4, H, W); else (B, L, 4).
        kinds: how often each kind of statement is drawn.
        inputs: names of inputs that statements may read; the ones that are read are in `used`.
    """

    def __init__(
        self, random: Random, *, image: bool, tokens: bool, kinds: dict[str, float], inputs: tuple[str, ...]
    ) -> None:
        self.random, self.image, self.tokens, self.kinds = random, image, tokens, kinds
        axes = (0, 2, 3) if image else (0, 1)
        self.rank, self.channel = (4, 1) if image else (3, 2)
        self.sizes = Expressions(random, axes, (0, 1) if tokens else axes)
        self.inputs, self.used = inputs, dict[str, None]()
        self.init: dict[str, None] = {}
        self.depth = 0

    def needs(self, *lines: str) -> None:
        self.init |= dict.fromkeys(lines)

    def reads(self, *names: str) -> str | None:
        """One of these inputs, if the model has one."""
        found = [n for n in names if n in self.inputs]
        if not found:
            return None
        name = self.random.choice(found)
        self.used[name] = None
        return name

    def choice(self, text: str) -> str:
        """One of the lines; a written-out \\n in it is a line's end."""
        return self.random.choice(text.strip().splitlines()).strip().replace("\\n", "\n")

    def statement(self) -> Statement:
        for _ in range(20):
            name = self.random.choices([*self.kinds], [*self.kinds.values()])[0]
            weights, makers = zip(*KINDS[name], strict=True)
            made = self.random.choices(makers, weights)[0](self)
            if made.text:
                return made
        return scale(self)

    def block(self, most: int = 2) -> tuple[Statement, ...]:
        self.depth += 1
        body = tuple(self.statement() for _ in range(self.random.randint(1, most)))
        self.depth -= 1
        return body

    def filled(self, text: str, *parts: Expr, bodies: tuple[tuple[Statement, ...], ...] = ()) -> Statement:
        """A statement with `%d` (a dimension that varies), `%p` (colons before it), `%i` %c (integers) written out."""
        d, other = self.sizes.axis(), self.sizes.axis()
        text = text.replace("%pad", f"(0, 0) * {self.rank - 1 - d}").replace("%p", ":, " * d).replace("%d", str(d))
        text = text.replace("%o", str(other)).replace("%ch", str(self.channel))
        while "%c" in text:
            text = text.replace("%c", str(self.random.randint(2, 4)), 1)
        return Statement(text, parts, bodies)


NOTHING = Statement("")


# --- sizes ----------------------------------------------------------------------------------------------------------


@kind("number", 3)
def scale(w: Writer) -> Statement:
    text = w.choice("""h = h * {0}
        h = h + {0}
        h = h / ({0} + 1.5)
        h = (h * {0}).tanh()
        h = torch.clamp(h, max={0})
        h = h - torch.tensor({0})
        h = torch.full_like(h, {0}) + h
        h = torch.where(h > {0}, h, h * 2)
        h = h.masked_fill(h > {0}, 0.0)""")
    return w.filled(text, w.sizes.float())


@kind("number", 2)
def number(w: Writer) -> Statement:
    return w.filled(w.choice("n = {0}\nn = n + {0}\nn += {0} % 3\nn = max(n, {0} % 9)\nh = h + {0}"), w.sizes.integer())


@kind("slice", 4)
def cut(w: Writer) -> Statement:
    text = w.choice("""h = h[%p:{0}]
        h = h[%p{0}:]
        h = h[%p-{0} - 1:]
        h = h[%p:-{0} - 1]
        h = h[%p{0}:{1} + 3]
        h = h[%p:: {0} + 1]
        h = h.narrow(%d, 0, min(h.shape[%d], {0} + 1))
        h = h.narrow(%d, min({0}, h.shape[%d] - 1), 1)
        h = h[%p{0} % h.shape[%d]].unsqueeze(%d)
        h = h.select(%d, {0} % h.shape[%d]).unsqueeze(%d)
        h = h[%p: h.shape[%d] // %c * %c]
        h = h[%p: max(1, h.shape[%d] - %c)]
        h = h[%p: h.shape[%d] // 2] + h[%p-(h.shape[%d] // 2):]
        h = torch.cat([h[%p{0}:], h[%p:{0}]], %d)
        h = h[%p: x.shape[0] + 2]
        h = h[%p[0, -1]]
        h = h.index_select(%d, torch.arange(h.shape[%d]) // %c)
        h = torch.cat([h, h.narrow(%d, 0, min({0}, h.shape[%d]))], %d)""")
    return w.filled(text, w.sizes.count(), w.sizes.count())


@kind("pad", 3)
def pad(w: Writer) -> Statement:
    text = w.choice("""h = F.pad(h, %pad + (0, -h.shape[%d] % %c))
        h = F.pad(h, %pad + (0, {0}))
        h = F.pad(h, %pad + ({0}, {0}))
        h = F.pad(h, %pad + (0, max(0, %c - h.shape[%d])))
        h = F.pad(h, %pad + (0, math.ceil(h.shape[%d] / %c) * %c - h.shape[%d]))
        h = F.pad(h, %pad + (0, max((-(-h.shape[%d] // 2) - 1) * 2 + 3 - h.shape[%d], 0)), value=1.0)
        m = -h.shape[%d] % %c\\nh = F.pad(h, %pad + (m // 2, m - m // 2))
        h = torch.cat([h, h.new_zeros(h.shape[:%d] + ({0},) + h.shape[%d + 1:])], %d)
        h = torch.cat([h, torch.zeros(*h.shape[:%d], {0}, *h.shape[%d + 1:])], %d)""")
    return w.filled(text, w.sizes.count())


@kind("parts", 3)
def parts(w: Writer) -> Statement:
    text = w.choice("""h = torch.cat([p - p.mean(%d, keepdim=True) for p in h.split({0} + 1, %d)], %d)
        h = torch.cat([p - p.mean(%d, keepdim=True) for p in h.split(%c, %d)], %d)
        h = torch.cat([p * i for i, p in enumerate(h.chunk({0} + 1, %d), 1)], %d)
        h = torch.cat([p * i for i, p in enumerate(h.chunk(%c, %d), 1)], %d)
        h = torch.cat([p * i for i, p in enumerate(torch.tensor_split(h, %c, %d), 1)], %d)
        h = torch.stack([p * (i + 1) for i, p in enumerate(h.unbind(%d))], %d)
        h = torch.stack([p + i for i, p in enumerate(h)])
        h = h * len(h.split(%c, %d))
        h = h * len([*h])
        h = sum(h.split(1, %d))
        h = torch.cat(h.split([{0}, h.shape[%d] - {0}], %d)[::-1], %d)
        a, *b = h.unbind(%d)\\nh = h + a.unsqueeze(%d) * len(b)
        a, b = h[%p: h.shape[%d] // 2 * 2].chunk(2, %d)\\nh = torch.cat([b, a], %d)
        for p in h.split(%c, %d):\\n    h = h + p.mean()
        h = torch.cat([p for p, q in zip(h.split(1, %d), range({0} + 1))], %d)
        h = torch.cat([p.relu() for p in h.split(%c, %d) if p.shape[%d] == %c] + [h], %d)""")
    return w.filled(text, w.sizes.count())


@kind("loop", 3)
def loop(w: Writer) -> Statement:
    if w.depth > 1:
        return NOTHING
    text = w.choice("""for i in range({0}):\\n    @0
        for i in range({0}):\\n    h = h + i
        for i in range(0, h.shape[%d], %c):\\n    h = h + h[%pi : i + %c].mean()
        for i in range(h.shape[%d] // %c):\\n    h = h * 0.5 + i
        for i in range(1, {0} + 1):\\n    h = h + h.roll(i, %d)
        m = {0} + %c\\nwhile m > 2:\\n    m = m // 2\\n    h = h + m
        m = {0}\\nwhile m:\\n    m -= 1\\n    h = h + m
        for i in range({0}):\\n    if i % 2:\\n        @0
        for i, s in enumerate(h.shape):\\n    h = h + i * s
        for i in range({0}):\\n    if i > h.shape[%d] - %c:\\n        break\\n    h = h + 1
        h = h * sum(i * i for i in range({0}))
        h = h + torch.stack([h.mean() * i for i in range({0} + 1)]).sum()""")
    return w.filled(text, w.sizes.count(), bodies=(w.block(1),))


@kind("branch", 4)
def branch(w: Writer) -> Statement:
    if w.depth > 1:
        return NOTHING
    text = w.choice("""if {0}:\\n    @0
        if {0}:\\n    @0\\nelse:\\n    @1
        if {0}:\\n    @0\\nelif {1}:\\n    @1
        if {0}:\\n    @0\\nelif {1}:\\n    @1\\nelse:\\n    h = h * 2
        h = h * 2 if {0} else h - 1
        if not ({0}):\\n    h = h + 1
        h = h * (3.0 if {0} and {1} else 1.0)
        h = h * bool({0}) + h
        assert {0} or {1} or True, f"{{h.shape}}\"""")
    bodies = (w.block(2), w.block(1))
    return w.filled(text, w.sizes.condition(), w.sizes.condition(), bodies=bodies)


@kind("rank", 2)
def squeeze(w: Writer) -> Statement:
    text = w.choice("""h = h * h.mean(%d, keepdim=True).squeeze().dim()
        h = h * h.squeeze().dim()
        h = h + h.squeeze(%d).sum()
        if h.squeeze(%d).dim() < h.dim():\\n    @0
        y = h.squeeze()\\nh = h + (y.sum(0) if y.dim() > 2 else y.sum())
        h = h.squeeze(%d).unsqueeze(%d) if h.shape[%d] == 1 else h * 2
        h = h + h.mean(%d).squeeze(0).mean()
        h = h.squeeze().reshape(h.shape)
        y = h.mean((%d,)).squeeze()\\nh = h + y.ndim""")
    return w.filled(text, bodies=(w.block(1),))


@kind("shape", 3)
def reshape(w: Writer) -> Statement:
    text = w.choice("""h = h.flatten(0, 1).reshape(h.shape) * 2
        y = h.flatten(1)\\nh = h * y.shape[1]
        m = h.shape[%d] // %c\\nh = h.narrow(%d, 0, m * 2).unflatten(%d, (m, 2)).mean(%d + 1)
        h = h.reshape(h.shape[0] * h.shape[1], -1).reshape(h.shape)
        h = h.view(-1).view(*h.shape) if h.is_contiguous() else h.contiguous()
        h = h.reshape(1, -1).tanh().view_as(h)
        h = h.transpose(%d, %o).contiguous().transpose(%d, %o)
        h = h.expand_as(h) + h.mean(%d, keepdim=True).expand(*h.shape)
        h = h + h.mean(%d, keepdim=True).expand(h.size())
        h = h.repeat_interleave({0} + 1, %d)
        h = torch.cat([h] * ({0} + 1), %d)
        h = torch.stack([h] * ({0} + 1)).mean(0)
        h = h.repeat([{0} + 1 if i == %d else 1 for i in range(h.dim())])
        h = h.unfold(%d, 2, 1).mean(-1)
        h = h.movedim(0, %d).movedim(%d, 0)
        s = list(h.shape)\\ns[%d] = -1\\nh = h.reshape(s)
        h = h.reshape([*h.shape[:-1], h.shape[-1] // 2, 2]).flip(-1).flatten(-2)""")
    return w.filled(text, w.sizes.count())


@kind("shape", 2)
def make(w: Writer) -> Statement:
    text = w.choice("""h = h + torch.arange(h.shape[%d]).float().mean()
        y = torch.arange({0} + 1, dtype=torch.float32)\\nh = h + y.sum()
        h = h * torch.ones(h.shape[%d]).view([-1 if i == %d else 1 for i in range(h.dim())])
        p = torch.arange(h.shape[%d]) % %c\\nh = h.index_select(%d, p.clamp(max=h.shape[%d] - 1))
        p = torch.arange(h.shape[%d]).clamp(max={0})\\nh = h.index_select(%d, p % h.shape[%d])
        h = h + torch.linspace(0, 1, {0} + 2).sum()
        h = h + torch.arange(0, h.shape[%d], %c).sum()
        h = h + torch.full(({0} + 1,), 2.0).sum()
        h = h + torch.tensor(h.shape).sum()
        h = h + torch.tensor([{0}, h.shape[%d]]).float().mean()
        h = h * (2.0 if torch.tensor({0}) > 2 else 1.0)
        h = h * (2.0 if torch.arange(h.shape[%d]).max() > 6 else 1.0)
        h = h + torch.zeros_like(h).add_({0})
        h = h + h.new_tensor({0})
        h = h + torch.eye({0} + 1).sum()
        h = h + torch.ones(h.shape[%d], h.shape[%o]).tril({0} - 2).mean()
        h = h + torch.zeros({0} + 1, h.shape[%d]).numel()""")
    return w.filled(text, w.sizes.count())


@kind("shape", 2)
def order(w: Writer) -> Statement:
    text = w.choice("""h = h.roll({0}, %d)
        h = h.roll(h.shape[%d] // 2, %d)
        h = h.flip(%d)
        h = h.topk(min(%c, h.shape[%d]), %d).values
        h = h.sort(%d).values
        h = h.cumsum(%d)
        h = h - h.amax(%d, keepdim=True)
        h = h / h.shape[%d] ** 0.5
        h = h.softmax(%d)
        h = h + h.std(%d, keepdim=True) if h.shape[%d] > 1 else h
        h = h.mean(%d, keepdim=True) + h
        h = h.kthvalue({0} % h.shape[%d] + 1, %d, keepdim=True).values + h
        h = h.diff(dim=%d)""")
    return w.filled(text, w.sizes.count())


@kind("layer", 3)
def layer(w: Writer) -> Statement:
    if w.image:
        w.needs("self.conv = nn.Conv2d(4, 4, 3, 2, 1)", "self.same = nn.Conv2d(4, 4, 3, padding=1)")
        text = w.choice("""h = self.conv(h)
            h = self.same(h)
            h = self.same(h).relu() + h
            h = F.avg_pool2d(h, 2, ceil_mode=True)
            h = F.interpolate(h, size=({0} + 2, h.shape[3]))
            h = F.interpolate(h, scale_factor=2.0)
            h = F.adaptive_avg_pool2d(h, ({0} + 1, h.shape[2] // 2 + 1))
            h = F.interpolate(self.conv(h), size=h.shape[2:]) + h
            h = F.max_pool2d(h, 3, 2, 1)
            h = F.layer_norm(h, h.shape[1:])""")
    else:
        w.needs("self.linear = nn.Linear(4, 4)", "self.norm = nn.LayerNorm(4)")
        text = w.choice("""h = self.linear(h)
            h = self.norm(h)
            h = self.linear(h).relu() + h
            h = F.adaptive_avg_pool1d(h.transpose(1, 2), {0} + 1).transpose(1, 2)
            h = F.interpolate(h.transpose(1, 2), size={0} + 2).transpose(1, 2)
            h = F.avg_pool1d(h.transpose(1, 2), 2, ceil_mode=True).transpose(1, 2)
            h = F.scaled_dot_product_attention(h, h, h, is_causal=h.shape[1] > 1)
            a = h @ h.mT / h.shape[-1] ** 0.5\\nh = a.masked_fill(torch.ones(a.shape[1:]).tril() == 0, -1e9).softmax(-1) @ h
            h = torch.einsum("blc,bmc->blm", h, h) @ h / h.shape[1]
            h = F.layer_norm(h, h.shape[1:])""")
    return w.filled(text, w.sizes.count())


# --- writes in place ------------------------------------------------------------------------------------------------


@kind("write", 3)
def write(w: Writer) -> Statement:
    text = w.choice("""h = h.clone()\\nh[%p0] = 0
        h = h * 1\\nh[%p:{0}] = 1.5
        h = h * 1\\nh[%p:{0}] += 1
        h = h * 1\\nh[%p: h.shape[%d] // 2].mul_(2)
        h = h * 1\\nv = h[%p1:]\\nv.add_(1)
        h = h * 1\\nv = h.view(-1)\\nv[0] = 5\\nv[-{0} - 1:] = 2
        h = h * 1\\nv = h.transpose(0, %d)\\nv.relu_()\\nh = h + v.mean()
        h = h * 1\\nh[h > 0.5] = 0
        h = h * 1\\nh[%p::%c] = h[%p::%c] * 2
        h = h * 1\\nh.copy_(h.flip(%d))
        y = torch.zeros_like(h)\\ny[%p:{0}] = h[%p:{0}]\\nh = y
        y = torch.empty_like(h)\\nfor i in range(h.shape[%d]):\\n    y[%pi] = h[%pi] * i\\nh = y
        y = h.new_zeros(h.shape)\\ny[%p-1] = h[%p0]\\nh = h + y
        y = h\\ny = y.add_(1)\\nh = h + y
        h = h * 1\\nh.index_fill_(%d, torch.tensor([0]), 3.0)
        h = h * 1\\ny = h.detach()\\ny[0] = 1
        h = h * 1\\nfor p in h.split(%c, %d):\\n    p.sub_(p.mean())
        h = h * 1\\na, b = h[%p:1], h[%p-1:]\\na.add_(b)
        h = h * 1\\nh.narrow(%d, 0, min({0}, h.shape[%d])).zero_()
        y = torch.zeros(h.shape)\\ntorch.add(h, 1, out=y)\\nh = h + y
        h = h * 1\\nh.resize_(h.shape)
        h = h * 1\\nh.masked_fill_(h < 0, {0})
        h = h * 1\\nh.unsqueeze(0)[0, 0].fill_({0})
        h += 1
        h *= {0}
        h = h.relu_()
        h = h * 1\\nh[...] = h.mean(%d, keepdim=True)
        h = h * 1\\nh.data[0] = 1
        h = h * 1\\nh.index_add_(%d, torch.zeros(h.shape[%d], dtype=torch.long), h.clone())""")
    return w.filled(text, w.sizes.count())


# --- state ----------------------------------------------------------------------------------------------------------


@kind("state", 3)
def state(w: Writer) -> Statement:
    init, text = w.choice("""self.count = 0 | self.count += 1
        self.count = 0 | self.count += 1\\nh = h * self.count
        self.seen = 0 | self.seen = max(self.seen, h.shape[%d])\\nh = h + self.seen
        self.seen = 0 | self.seen = h.shape[%d]
        self.last = None | h = h if self.last is None else h + self.last.mean()\\nself.last = h
        self.last = None | self.last = h
        self.history = [] | self.history.append(h.mean())\\nh = h + sum(self.history)
        self.history = [] | self.history.append(h.shape[%d])\\nh = h * len(self.history)
        self.cache = {{}} | if h.shape[%d] not in self.cache:\\n    self.cache[h.shape[%d]] = torch.arange(h.shape[%d]).float().mean()\\nh = h + self.cache[h.shape[%d]]
        self.cache = {{}} | self.cache["h"] = h\\nh = self.cache["h"] * 2
        self.table = None | if self.table is None or len(self.table) < h.shape[%d]:\\n    self.table = torch.arange(h.shape[%d]).float()\\nh = h + self.table[: h.shape[%d]].mean()
        self.mean = torch.zeros(()) | self.mean = 0.9 * self.mean + 0.1 * h.mean()\\nh = h - self.mean
        self.mean = torch.zeros(()) | self.mean += h.mean()\\nh = h - self.mean
        self.register_buffer("ema", torch.zeros(1)) | self.ema.mul_(0.9).add_(h.mean())\\nh = h - self.ema
        self.register_buffer("ema", torch.zeros(1)) | self.ema = self.ema * 0.9 + h.mean()\\nh = h - self.ema
        self.register_buffer("steps", torch.tensor(0)) | self.steps += 1\\nh = h * self.steps
        self.register_buffer("steps", torch.tensor(0)) | self.steps.add_(1)
        self.register_buffer("table2", torch.arange(12.0)) | h = h + self.table2[: h.shape[%d]].sum()
        self.register_buffer("table2", torch.arange(12.0)) | self.table2[: h.shape[%d]] = 1.0\\nh = h + self.table2.sum()
        self.register_buffer("slot", torch.zeros(3)) | self.slot[1:] = self.slot[:-1].clone()\\nself.slot[0] = h.mean()\\nh = h + self.slot.sum()
        self.first = True | h = h * 2 if self.first else h\\nself.first = False
        self.flag = False | self.flag = not self.flag\\nh = h * (1 + self.flag)
        self.scale = 2.0 | self.scale = self.scale * 0.5\\nh = h * self.scale
        self.scale = 2.0 | self.scale = float(h.shape[%d])\\nh = h * self.scale""").split(" | ")
    w.needs(init.replace("{{}}", "{}"))
    return w.filled(text)


# --- values that Python reads ---------------------------------------------------------------------------------------


@kind("value", 3)
def value(w: Writer) -> Statement:
    name = w.reads("k", "s", "pair_sizes", "flag_tensor")
    texts = {
        "k": """h = h[%p: int(k)]
            h = h * k
            h = h * int(k)
            h = h + k.item()
            for i in range(int(k)):\\n    h = h + i
            if k > 3:\\n    @0
            if int(k) == 2:\\n    @0
            h = h[%p: k]
            h = h.roll(int(k), %d)
            h = h * (2.0 if k.item() > 4 else 1.0)
            h = h + min(int(k), h.shape[%d])
            h = h.narrow(%d, 0, min(int(k), h.shape[%d]))
            h = h + torch.arange(int(k) + 1).sum()
            h = h * TABLE[int(k) % 8]""",
        "s": """h = h * s
            h = h * float(s)
            h = h + s.item()
            if s > 0:\\n    @0
            h = h * (2.0 if float(s) > 0.5 else 1.0)
            h = h + int(s * 4)""",
        "pair_sizes": """a, b = pair_sizes.tolist()\\nh = h[%p: a] * b
            h = h * pair_sizes.sum()
            for c in pair_sizes.tolist():\\n    h = h + c
            for c in pair_sizes:\\n    h = h + c
            h = h * int(pair_sizes[0])
            h = h * max(pair_sizes.tolist())
            h = h + int(pair_sizes.max())""",
        "flag_tensor": """if flag_tensor:\\n    @0
            h = h * flag_tensor
            h = h * 2 if bool(flag_tensor) else h
            h = torch.where(flag_tensor, h, h * 2)""",
    }
    own = """if h.sum() > 0:\\n    @0
        h = h * (2.0 if h.max() > 1 else 1.0)
        h = h + round(float(h.mean()), 1)
        h = h + h.argmax().item()
        h = h[(h > -1).all(%ch).all(-1)] if h.dim() == 3 and %d == 0 else h
        h = h + len(h[h > 0])
        h = h + h.nonzero().shape[0]"""
    text = w.choice(texts[name] if name and w.random.random() < 0.85 else own)
    return w.filled(text, bodies=(w.block(1),))


# --- containers as inputs -------------------------------------------------------------------------------------------


@kind("container", 3)
def container(w: Writer) -> Statement:
    name = w.reads("cfg", "xs", "tree", "num", "flag", "word", "factor", "extra")
    texts = {
        "cfg": """h = h * cfg["scale"]
            h = h + cfg["bias"].mean()
            for i in range(cfg["steps"]):\\n    h = h + i
            if "bonus" in cfg:\\n    h = h + cfg["bonus"]
            h = h * len(cfg)
            h = h + cfg.get("bonus", 1)
            if cfg["mode"] == "fast":\\n    @0
            for v in cfg.values():\\n    h = h + (v.mean() if isinstance(v, torch.Tensor) else 1)
            h = h[%p: cfg["steps"]]""",
        "xs": """for t in xs:\\n    h = h + t.mean()
            h = h * len(xs)
            h = h + xs[0].mean() - xs[-1].sum()
            h = h + torch.cat(xs).mean()
            h = h + torch.stack([t.mean() for t in xs]).sum()
            h = h + sum(t.shape[0] for t in xs)
            h = h + xs[-1].shape[0]""",
        "tree": """h = h * tree["a"][0]
            h = h + tree["a"][1].mean()
            h = h + tree["b"]["c"].sum()
            if tree["b"]["on"]:\\n    @0
            h = h * len(tree["a"])""",
        "num": """h = h * num
            for i in range(num):\\n    h = h + i
            h = h[%p:num]
            if num > 3:\\n    @0
            h = h + min(num, h.shape[%d])""",
        "flag": """if flag:\\n    @0
            h = h * (1 + flag)""",
        "word": """if word == "fast":\\n    @0
            h = h + {{"fast": 1, "slow": 2}}.get(word, 3)""",
        "factor": """h = h * factor
            h = h * (2 if factor > 1 else 1)""",
        "extra": """h = h if extra is None else h + extra.mean()
            if extra is not None:\\n    @0""",
    }
    if name is None:
        return NOTHING
    return w.filled(w.choice(texts[name]), bodies=(w.block(1),))


# --- properties that Python reads -----------------------------------------------------------------------------------


@kind("flag", 2)
def flag(w: Writer) -> Statement:
    text = w.choice("""h = h * (2 if x.requires_grad else 1)
        h = h * (2 if x.is_contiguous() else 1)
        h = h * (2 if h.requires_grad else 1)
        h = h * (2 if torch.is_grad_enabled() else 1)
        h = h * (2 if self.training else 1)
        h = h * (2 if h.dtype == torch.float32 else 1)
        h = h * (2 if h.device.type == "cpu" else 1)
        h = h.to(x.device)
        h = h * (2 if x.stride(0) > x.shape[1] else 1)
        h = h * (2 if h.is_contiguous() else 1)
        h = h * (2 if h.is_floating_point() else 1)
        h = h if torch.jit.is_scripting() else h + 1
        h = h + h.element_size()
        h = h + x.ndim""")
    return w.filled(text)
