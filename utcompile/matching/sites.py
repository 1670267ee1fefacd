"""From a match to a site: the values that are read and changed, and the checks that this is legal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import fx, nn

from utcompile.errors import UtcError
from utcompile.graph import Value, describe
from utcompile.matching.engine import Bindings
from utcompile.matching.forms import ChainPlace, Earlier, Found, Place, ValuePlace, WeightPlace, placed
from utcompile.rules import ChainInsertion, Measured
from utcompile.tuners import Form, Tuner, TunerConfig, TunerSite, build_tuner, tuner_class


@dataclass(frozen=True, kw_only=True, repr=False)
class Site:
    """One place where a rule inserts a tuner.

    Attributes:
        id: rule name, module path and ordinal, `mha/blocks.0/0`: it survives an upgrade of torch.
        rule: the rule's name.
        path: the path of the module whose call encloses the match.
        parameters: the number of parameters that the tuner trains.
        reads: the shape that it reads, with B for the batch.
        writes: the shape that it changes.
        config: the tuner's config; what the rule leaves open is decided.
        place: the place in the graph, one type per form.
        bindings: the captures of the match.
        note: a remark of the plan below its table.
        measured: what `how: measured` found; None where it was not asked.
    """

    id: str
    rule: str
    path: str
    parameters: int
    reads: str
    writes: str
    config: TunerConfig
    place: Place
    bindings: Bindings = field(default_factory=dict, compare=False)
    note: str | None = None
    measured: Measured | None = None

    def __repr__(self) -> str:
        names = ("id", "rule", "path", "form", "tuner", "parameters", "reads", "writes", "how", "tunes")
        return f"Site({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    @property
    def form(self) -> Form:
        """The form's word in rule files."""
        return self.place.site.form

    @property
    def tuner(self) -> str:
        """The tuner's kind."""
        return self.config.kind

    @property
    def build_from(self) -> TunerSite:
        """The site as the tuner's `build` sees it."""
        return self.place.site

    @property
    def source(self) -> fx.Node:
        """The value that the tuner reads."""
        return self.place.source

    @property
    def targets(self) -> tuple[fx.Node, ...]:
        """The changed value, or the calls of the changed operation."""
        return self.place.targets

    @property
    def given(self) -> tuple[Value, ...]:
        """The inputs of the tuner's `forward`; for a weight tuner, of the operation."""
        return self.place.given

    @property
    def reader(self) -> fx.Node | None:
        """The operation that alone reads the changed value; None for all readers."""
        return self.place.reader if isinstance(self.place, ValuePlace) else None

    @property
    def how(self) -> str | None:
        """For a weight tuner, `branch` or `reparametrised`."""
        return self.place.how if isinstance(self.place, WeightPlace) else None

    @property
    def tunes(self) -> Mapping[str, str | None]:
        """For a weight tuner, role to the name of the changed parameter; None for a parameter that it adds."""
        return self.place.tunes if isinstance(self.place, WeightPlace) else {}

    @property
    def inserts(self) -> str:
        """`parallel adapter`, `weight lora branch`."""
        return " ".join(filter(None, (self.form, self.tuner, self.how)))

    def build(self, shared: dict[Hashable, nn.Module] | None = None) -> Tuner:
        """Make the tuner, on the current default device.

        Args:
            shared: the modules that the sites of one tuned model share (`TunerSite.share`); None for none.
        """
        site = replace(self.build_from, shared={} if shared is None else shared)
        return build_tuner(tuner_class(self.tuner), self.config, site)


def make_site(found: Found, ordinal: int) -> Site:
    """Check that a rule's insertion is legal at a match and describe it.

    Args:
        found: the match.
        ordinal: its number among the rule's matches in one module call.

    Raises:
        UtcError: the insertion is not legal, with the rule file, the graph node, and how to exclude the site.
    """
    return _site(found, ordinal, at=found.env[found.rule.insert.target])


def make_chain(matches: Sequence[Found]) -> list[Site]:
    """The stages of a rule's side network.

    Raises:
        UtcError: a stage is not legal, or the network would read a value that it changes.
    """
    sites: list[Site] = []
    before: list[Earlier] = []
    count: Counter[str] = Counter()
    for found in matches:
        insertion = found.rule.insert
        assert isinstance(insertion, ChainInsertion)
        at, is_last = found.env[insertion.source], found is matches[-1]
        site = _site(found, count[found.path], at=at, before=before, is_last=is_last)
        count[found.path] += 1
        assert isinstance(site.place, ChainPlace)
        sites.append(site)
        before.append(Earlier(site.id, site.place))
    return sites


def _site(found: Found, ordinal: int, *, at: fx.Node, before: Sequence[Earlier] = (), is_last: bool = True) -> Site:
    rule = found.rule
    try:
        made = placed(found, before, is_last)
    except UtcError as error:
        raise error.within(f"rule '{rule.name}' at {describe(at)}", where=str(rule.insert.mark)) from error
    return Site(
        id=f"{rule.name}/{found.path}/{ordinal}",
        rule=rule.name,
        path=found.path,
        parameters=made.parameters,
        reads=str(made.reads),
        writes=str(made.writes),
        config=made.config,
        place=made.place,
        bindings=found.env,
        note=made.note,
    )


def merge_shared(sites: Sequence[Site]) -> list[Site]:
    """The calls of one module share its weight tuner: their sites become one."""
    found: dict[tuple[str, str, object], int] = {}
    result: list[Site] = []
    for site in sites:
        place = site.place
        if not isinstance(place, WeightPlace):
            result.append(site)
            continue
        named = frozenset(filter(None, place.tunes.values()))
        # an added bias belongs to a layer and not to a parameter
        key = (site.rule, site.tuner, named or place.site.only_branch or str(place.targets[0].target))
        if key not in found:
            found[key] = len(result)
            result.append(site)
            continue
        first = result[found[key]]
        assert isinstance(first.place, WeightPlace)
        joined = replace(first.place, targets=(*first.targets, *place.targets))
        result[found[key]] = replace(first, place=joined)
    return result
