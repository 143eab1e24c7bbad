"""The settings of a distillation: one frozen record, saved whole in run.json.

Defaults come from the paper notes where the paper speaks, and from docs/decisions where small data argues otherwise.
"""

from dataclasses import asdict, dataclass, fields
from typing import get_args, get_origin

from tinkit.errors import TinkitError
from tinkit.host.distill.objective import Term, parse_terms, wanted
from tinkit.host.mapping import KINDS
from tinkit.host.methods import options_of
from tinkit.host.teacher import DEFAULT_TEACHER

SHARED = ("mapping", "center", "cosines_weight")  # settings that are options of a method
DEFAULT_STUDENT = "mobilenetv4_conv_small"
COMPILE = ("auto", "off", "on", "cuda-graphs")
NOT_NEGATIVE = ("seed", "workers", "views", "clip", "weight_decay", "cosines_weight", "label_weight",
                "decoded_cache_gb", "checkpoint_minutes")  # fmt: skip
AT_LEAST_ONE = ("epochs", "batch_size", "teacher_size", "student_size", "dim", "pca_pictures", "devices", "num_nodes",
                "micro_batch", "teacher_batch", "store_grid", "keep_checkpoints")  # fmt: skip
# Where and how fast a run is computed, not what: a resumed run may have others.
MAY_CHANGE = (
    "devices",
    "num_nodes",
    "workers",
    "micro_batch",
    "teacher_batch",
    "decoded_cache_gb",
    "checkpoint_minutes",
    "keep_checkpoints",
    "store_limit_gb",
    "compile",
)


@dataclass(frozen=True)
class Settings:
    """What `tinkit distill` can be told. Sizes in pixels; None means the network's own."""

    images: str
    teacher: str = DEFAULT_TEACHER
    teacher_weights: str | None = None
    teacher_size: int | None = None
    teacher_global: str = "own"  # or "pooled"
    teacher_mean: tuple[float, ...] | None = None
    teacher_std: tuple[float, ...] | None = None
    student: str = DEFAULT_STUDENT
    student_size: int | None = None
    student_weights: str | None = None
    dim: int | None = None
    method: str = "tintem"  # or several with weights: tintem+dist:0.5
    options: tuple[str, ...] = ()  # of methods: name=value, METHOD.name=value
    labels: str | None = None  # "folders", or a CSV of path,label
    label_weight: float | None = None  # of cross-entropy; None: as in the method's paper
    logits: bool = False  # the terms over logits of methods that can do without
    keep_head: bool = False  # ship the classifier with the student
    mapping: str = "pca"
    center: bool = True
    cosines_weight: float = 1.0
    local: bool = True  # the terms over local features
    epochs: int = 50
    batch_size: int = 64
    views: int = 4
    scale_min: float = 0.6
    learning_rate: float | None = None  # 0.005 for a CNN, 0.0005 where there is attention
    weight_decay: float = 0.05
    warmup: float = 0.1  # share of all steps
    clip: float = 1.0  # gradient norm; 0 = off
    ema: float = 0.0  # decay; 0 = off
    pca_pictures: int = 10_000
    online: bool = False
    store: str | None = None
    store_dtype: str = "float16"
    store_grid: int | None = None  # local features pooled to so many rows and columns
    store_limit_gb: float | None = None  # of all stores in one folder; None: no limit
    decoded_cache_gb: float | None = None  # decoded pictures in memory; None: what is free allows, 0 = off
    decoder: str = "pillow"  # or "torchvision"
    scan: str = "auto"  # "full": every picture is tried first; "quick": none is opened
    workers: int | None = None  # loader processes of each device
    devices: int = 1  # processes on this machine, one for each GPU
    num_nodes: int = 1
    sync_batchnorm: bool = True  # batch statistics of all devices together
    micro_batch: int | None = None  # pictures of one pass through the student; None: the batch
    teacher_batch: int | None = None  # pictures of one pass through the teacher
    compile: str = "auto"
    checkpoint_minutes: float = 10
    keep_checkpoints: int = 2
    strict: bool = False
    seed: int = 0

    def __post_init__(self):
        if isinstance(self.compile, bool):  # older records and settings files
            object.__setattr__(self, "compile", "on" if self.compile else "off")
        for field in fields(self):
            _check_type(field.name, field.type, getattr(self, field.name))
        for name in NOT_NEGATIVE:
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise TinkitError(f"{name} must be 0 or more.", seen=str(value))
        terms = self.terms()
        wanted(terms, self.local, self.logits, self.labels is not None)
        self._refuse_idle(terms)
        _one_of("mapping", self.mapping, KINDS)
        _one_of("teacher_global", self.teacher_global, ("own", "pooled"))
        _one_of("store_dtype", self.store_dtype, ("float16", "float32", "int8"))
        _one_of("compile", self.compile, COMPILE)
        _one_of("decoder", self.decoder, ("pillow", "torchvision"))
        _one_of("scan", self.scan, ("auto", "full", "quick"))
        for name in AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TinkitError(f"{name} must be 1 or more.", seen=str(value))
        if self.batch_size < 2:
            raise TinkitError("batch_size must be 2 or more: the loss compares pictures.", seen=str(self.batch_size))
        self._refuse_uneven_shares()
        if self.views < 1 and not self.online:
            raise TinkitError(
                "The feature store needs at least one view a picture.",
                seen=f"views {self.views}",
                next_step="--views 2, or --online with --views 0 for a fresh view every epoch",
            )
        for name, low, high in (
            ("learning_rate", 0, 10),
            ("warmup", -1e-9, 1),
            ("ema", -1e-9, 1),
            ("scale_min", 0, 1.0001),
            ("store_limit_gb", 0, float("inf")),
        ):
            value = getattr(self, name)
            if value is not None and not low < value < high:
                raise TinkitError(f"{name} is out of range.", seen=str(getattr(self, name)))

    @property
    def processes(self) -> int:
        """How many processes share a batch."""
        return self.devices * self.num_nodes

    def _refuse_uneven_shares(self) -> None:
        """Every process takes an equal share of a batch, of two pictures or more."""
        if (self.batch_size % self.processes == 0 and self.batch_size >= 2 * self.processes) or self.processes == 1:
            return
        below = self.batch_size // self.processes * self.processes
        fitting = [size for size in (below, below + self.processes) if size >= 2 * self.processes]
        raise TinkitError(
            "batch_size is the whole batch: each device takes an equal share of it, two pictures or more.",
            seen=f"batch_size {self.batch_size} on {self.processes} devices",
            next_step="--batch-size " + " or ".join(map(str, fitting or [2 * self.processes])),
        )

    def terms(self) -> list[Term]:
        """The methods with their weights and options."""
        return parse_terms(self.method, self.options, {name: getattr(self, name) for name in SHARED})

    def _refuse_idle(self, terms) -> None:
        """What would do nothing is not accepted in silence: a comparison with and without it would say "no difference"."""
        defaults = {field.name: field.default for field in fields(self)}
        for name in SHARED:
            if getattr(self, name) != defaults[name] and not any(name in options_of(term.cls) for term in terms):
                raise TinkitError(
                    f"{self.method} has no {name}.", seen=str(getattr(self, name)), next_step="leave it out"
                )
        if self.label_weight is not None and self.labels is None:
            raise TinkitError("A weight of labels needs labels.", next_step="--labels folders, or --labels FILE.csv")
        if self.logits and not any("logits" in (*term.cls.needs, *term.cls.uses) for term in terms):
            raise TinkitError(f"{self.method} has no term over logits.", seen="--logits", next_step="leave it out")

    def to_json(self):
        return asdict(self)

    @classmethod
    def from_json(cls, value):
        known = {field.name for field in fields(cls)}
        tuples = {name: tuple(v) for name, v in value.items() if isinstance(v, list)}
        return cls(**{name: v for name, v in {**value, **tuples}.items() if name in known})


def _check_type(name, wanted, value):
    """TinkitError unless the value is of the annotated type; a whole number will do for a float."""
    kinds = (wanted,) if get_origin(wanted) is tuple else get_args(wanted) or (wanted,)
    plain = tuple(get_origin(kind) or kind for kind in kinds)
    accepted = (*plain, int) if float in plain else plain
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in plain):
        raise TinkitError(f"{name} has the wrong type.", seen=repr(value), next_step=f"it must be {_words(plain)}")


def _words(kinds):
    names = {str: "text", bool: "true or false", int: "a whole number", float: "a number", tuple: "a list"}
    return " or ".join(names[kind] for kind in kinds if kind in names)


def _one_of(name, value, known):
    if value not in known:
        raise TinkitError(f"There is no such {name}.", seen=value, next_step="one of " + ", ".join(known))
