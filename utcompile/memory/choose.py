"""Which units run again so that a step fits a budget: the least work, by a knapsack over what each of them saves."""

from __future__ import annotations

from collections.abc import Sequence

from utcompile.memory.simulate import RANDOM_STATE, Simulated

_STEPS = 2_000  # how finely the bytes of the knapsack are counted


class Model:
    """A step as a function of which units run again, from one simulation in which none does.

    Args:
        step: simulated with a mark at the end of each unit.
        runnable: by unit: whether it can run again.
    """

    def __init__(self, step: Simulated, runnable: Sequence[bool]) -> None:
        self.step = step
        self.kept = [m.after - m.before for m in step.forward]
        self.savings = [
            max(kept - moment.result - RANDOM_STATE, 0) if can else 0
            for kept, moment, can in zip(self.kept, step.forward, [*runnable, False], strict=False)
        ]
        self.work = [m.flops for m in step.forward]
        self.every = frozenset(i for i, s in enumerate(self.savings) if s)

    def flops(self, again: frozenset[int]) -> int:
        """Of a step."""
        return self.step.flops + sum(self.work[i] for i in again)

    def held(self, again: frozenset[int]) -> int:
        """Bytes kept after the forward pass."""
        return self.step.kept - sum(self.savings[i] for i in again)

    def peak(self, again: frozenset[int]) -> int:
        """The most bytes in a step."""
        highest = saved = 0
        for i, forward in enumerate(self.step.forward):
            highest = max(highest, forward.lead - saved, forward.peak - saved)
            backward = self.step.backward.get(i)
            if backward is not None:
                highest = max(highest, backward.peak - saved)
                if i in again:  # its forward once more, with the gradients that are there by then
                    gradients, held = backward.before - forward.after, forward.freed + RANDOM_STATE
                    once_more = forward.peak + max(gradients, 0)
                    highest = max(highest, held - saved + max(once_more, backward.peak))
            saved += self.savings[i] if i in again else 0
        return highest

    def least(self) -> frozenset[int]:
        """Every unit that can run again, without those whose running again does not lower the peak."""
        chosen = self.every
        for unit in sorted(self.every, key=lambda i: self.savings[i]):
            fewer = chosen - {unit}
            chosen = fewer if self.peak(fewer) <= self.peak(chosen) else chosen
        return chosen

    def within(self, budget: int) -> frozenset[int] | None:
        """The units whose running again takes the least work for a peak up to a budget; None where none suffice."""
        need = self.peak(frozenset()) - budget
        while need > 0:
            chosen = self._cheapest(need)
            if chosen is None:
                return self.every if self.peak(self.every) <= budget else None
            excess = self.peak(chosen) - budget
            if excess <= 0:
                return self._without_needless(chosen, budget)
            need += excess
        return frozenset()

    def _without_needless(self, chosen: frozenset[int], budget: int) -> frozenset[int]:
        """Units without those that the budget does not need, the most work first."""
        for unit in sorted(chosen, key=lambda i: -self.work[i]):
            if self.peak(chosen - {unit}) <= budget:
                chosen -= {unit}
        return chosen

    def _cheapest(self, need: int) -> frozenset[int] | None:
        """A 0/1 knapsack: savings of at least `need` for the least work."""
        grain = max(need // _STEPS, 1)
        goal = -(-need // grain)
        best: dict[int, tuple[int, frozenset[int]]] = {0: (0, frozenset())}
        for i, saving in enumerate(self.savings):
            if saving < grain:
                continue
            for got, (work, units) in list(best.items()):
                now = min(got + saving // grain, goal)
                if now not in best or best[now][0] > work + self.work[i]:
                    best[now] = (work + self.work[i], units | {i})
        return best[goal][1] if goal in best else None
