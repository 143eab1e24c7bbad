"""Self-healing precision: when a gate fails, a few nodes go back to higher precision until it passes.

Nodes are ranked by what they add to the error of real pictures (tinkit.host.export.activations: fp32 graph against the reduced
one, tensor by tensor). How many of the ranking are needed is found by doubling and bisecting, not node by node; then what
turns out not to be needed is dropped again, in halves first (delta debugging, Zeller and Hildebrandt 2002). No gate is
lowered: what cannot be healed within the target's `heal`, a share of MACs, stays failed, with the ranking as evidence.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from math import isinf

ROUNDS = 8  # rankings: one overflow hides the next
STEP = 8  # nodes taken from a ranking that was not enough
TRIALS = 60  # graphs judged, at most
SHOWN = 10  # of the ranking, in the evidence


@dataclass(frozen=True)
class Suspect:
    """A node that may go back to higher precision; `added` is the relative error that it adds (inf: it overflows)."""

    node: str
    op_type: str
    added: float


@dataclass(frozen=True)
class Trial:
    """How a graph with some nodes kept did: all gates passed; the worst cosine of a picture; what failed, in words."""

    passed: bool
    worst_cosine: float
    reason: str = ""


@dataclass(frozen=True)
class Kept:
    """A node in higher precision. gain: worst cosine with it less the one without it alone; macs: its share."""

    node: str
    op_type: str
    macs: float
    added: float
    gain: float | None = None


@dataclass(frozen=True)
class Healing:
    """What healing found. `kept` is empty where nothing helped; `ranking` are the first suspects of the first round."""

    healed: bool
    reason: str
    kept: tuple[Kept, ...]
    macs: float
    trials: int
    before: float
    after: float
    ranking: tuple[Suspect, ...] = field(default=())

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(kept.node for kept in self.kept)

    def to_json(self) -> dict:
        return asdict(self)


class _Trials:
    """Judges sets of kept nodes, each once, and counts."""

    def __init__(self, judge: Callable[[frozenset[str]], Trial], most: int):
        self.judge, self.most = judge, most
        self.seen: dict[frozenset[str], Trial] = {}

    def __call__(self, nodes: Iterable[str]) -> Trial:
        kept = frozenset(nodes)
        if kept not in self.seen:
            self.seen[kept] = self.judge(kept)
        return self.seen[kept]

    def passed(self, nodes: Iterable[str]) -> bool:
        return self(nodes).passed

    @property
    def spent(self) -> bool:
        return len(self.seen) >= self.most


def heal(
    judge: Callable[[frozenset[str]], Trial],
    suspects: Callable[[frozenset[str]], Sequence[Suspect]],
    macs: dict[str, float],
    limit: float,
    trials: int = TRIALS,
    say: Callable[[str], None] = lambda text: None,
) -> Healing:
    """The fewest nodes that make the gates pass in higher precision.

    judge(kept): builds and examines the graph with these nodes in higher precision. suspects(kept): the ranking of the
    others, worst first, given those. macs: node -> its share of all MACs (0 where it has none); limit: the largest share
    that may be returned. At most `trials` graphs are judged, a few more for the gains.
    """
    count = _Trials(judge, trials)
    before = count(())
    if before.passed:
        return Healing(False, "the gate passed: nothing to heal", (), 0.0, 1, before.worst_cosine, before.worst_cosine)
    first = ranking = list(suspects(frozenset()))
    known = {suspect.node: suspect for suspect in ranking}
    kept: list[str] = []
    for round_ in range(ROUNDS):
        if round_:
            ranking = list(suspects(frozenset(kept)))
            known.update((suspect.node, suspect) for suspect in ranking if suspect.node not in known)
        left = [suspect for suspect in ranking if suspect.node not in kept]
        overflows = [suspect for suspect in left if isinf(suspect.added)]  # behind one, a ranking says nothing
        offered = _affordable(kept, [suspect.node for suspect in overflows or left], macs, limit)
        enough = smallest_prefix(kept, offered, count)
        say(f"heal     round {round_ + 1}: {len(offered)} suspects, {len(count.seen)} graphs judged")
        if enough is not None:
            return _healed(enough, known, macs, first, before, count)
        kept += offered if overflows else offered[:STEP]
        if not offered or count.spent:
            break
    best = max(count.seen.values(), key=lambda trial: trial.worst_cosine)
    reason = (
        f"not healed with at most {limit:.0%} of the MACs in higher precision and {len(count.seen)} graphs judged; "
        f"the best worst-picture cosine was {best.worst_cosine:.6f}"
        + (f"; still failing: {best.reason}" if best.reason else "")
    )
    return Healing(
        False, reason, (), 0.0, len(count.seen), before.worst_cosine, best.worst_cosine, tuple(first[:SHOWN])
    )


def smallest_prefix(kept: Sequence[str], offered: Sequence[str], count: _Trials) -> list[str] | None:
    """`kept` and the shortest beginning of `offered` that passes, found by doubling and bisecting; None if none does."""
    fails, size = 0, 1
    while True:
        size = min(size, len(offered))
        if size == fails or count.spent:
            return None
        if count.passed([*kept, *offered[:size]]):
            break
        fails, size = size, size * 2
    passes = size
    while passes - fails > 1 and not count.spent:
        middle = (passes + fails) // 2
        if count.passed([*kept, *offered[:middle]]):
            passes = middle
        else:
            fails = middle
    return [*kept, *offered[:passes]]


def fewest(nodes: Sequence[str], count: _Trials) -> list[str]:
    """`nodes` without those that are not needed: halves are left out first, then smaller parts."""
    kept, size = list(nodes), len(nodes) // 2
    while size >= 1:
        start = 0
        while start < len(kept) and not count.spent:
            rest = kept[:start] + kept[start + size :]
            if rest and count.passed(rest):
                kept = rest
            else:
                start += size
        size //= 2
    return kept


def _affordable(kept, offered, macs, limit) -> list[str]:
    """The offered nodes, in their order, less those that would bring the MACs in higher precision above the limit."""
    total, taken = sum(macs.get(node, 0.0) for node in kept), []
    for node in offered:
        if total + macs.get(node, 0.0) <= limit + 1e-12:
            total += macs.get(node, 0.0)
            taken.append(node)
    return taken


def _healed(enough, known, macs, first, before: Trial, count: _Trials) -> Healing:
    nodes = fewest(enough, count)
    after = count(nodes)
    kept = tuple(
        Kept(
            node,
            known[node].op_type if node in known else "",
            macs.get(node, 0.0),
            known[node].added if node in known else 0.0,
            _gain(node, nodes, after, before, count),
        )
        for node in nodes
    )
    share = sum(entry.macs for entry in kept)
    reason = f"{len(kept)} nodes with {share:.1%} of the MACs went back to higher precision"
    if count.spent:
        reason += f"; the search for fewer ended after {len(count.seen)} graphs"
    return Healing(
        True, reason, kept, share, len(count.seen), before.worst_cosine, after.worst_cosine, tuple(first[:SHOWN])
    )


def _gain(node, nodes, after: Trial, before: Trial, count: _Trials) -> float | None:
    """What the node brings to the worst cosine, beside the others; None where that was not judged."""
    rest = frozenset(other for other in nodes if other != node)
    if not rest:
        return after.worst_cosine - before.worst_cosine
    if rest not in count.seen and count.spent:
        return None
    return after.worst_cosine - count(rest).worst_cosine
