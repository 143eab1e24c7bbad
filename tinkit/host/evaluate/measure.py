"""One number of an evaluation with its interval and, where there is one, the teacher's beside it.

Only these may be named in a budget. Intervals are 95 %, by bootstrap over pictures (tinkit.host.evaluate.resampling).
"""

from dataclasses import asdict, dataclass

HIGHER, LOWER = "higher", "lower"


@dataclass(frozen=True)
class Measure:
    """`student` is the value of the network under evaluation; `teacher` None where the number is a comparison of the two.

    interval: of `student`; change: of student minus teacher, both networks on the same resampled pictures. () where unknown.
    group: its block (similarity, labels, ood, corruption, domains, dense). what: one sentence, with the convention.
    """

    name: str
    group: str
    title: str
    student: float
    teacher: float | None = None
    better: str = HIGHER
    interval: tuple[float, ...] = ()
    change: tuple[float, ...] = ()
    what: str = ""

    def to_json(self):
        return dict(asdict(self), interval=list(self.interval), change=list(self.change))

    @classmethod
    def from_json(cls, value):
        return cls(**dict(value, interval=tuple(value["interval"]), change=tuple(value["change"])))
