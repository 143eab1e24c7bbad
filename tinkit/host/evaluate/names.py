"""Every name that a budget may use: which side of it is better, and what must be given so that it is measured.

Held against what the modules really measure by a test; a budget that cannot be judged is refused before hours of work.
"""

from collections.abc import Sequence

from tinkit.errors import TinkitError
from tinkit.host.evaluate.budget import Rule, check
from tinkit.host.evaluate.measure import HIGHER, LOWER

NAMES = {
    **dict.fromkeys(("cosine", "cosine_p1"), (HIGHER, "mapping")),
    "cosine_difference": (LOWER, ""),
    "cosine_difference_mapped": (LOWER, "mapping"),
    **dict.fromkeys(("fitted_cosine", "fitted_cosine_p1"), (HIGHER, "fitted mapping")),
    "fitted_cosine_difference_mapped": (LOWER, "fitted mapping"),
    "mapping_variance": (HIGHER, "some mapping"),
    **dict.fromkeys(("mapping_distance", "mapping_cosine_difference"), (LOWER, "some mapping")),
    **dict.fromkeys(("spearman", "cka", "cka_debiased", "overlap@1", "overlap@10", "overlap@50"), (HIGHER, "")),
    **dict.fromkeys(("knn", "probe", "agreement", "probe_agreement"), (HIGHER, "labels")),
    **dict.fromkeys(("ece", "churn"), (LOWER, "labels")),
    **dict.fromkeys(("auroc", "auroc@50", "aupr"), (HIGHER, "ood")),
    "auroc_near": (HIGHER, "near"),
    "auroc_far": (HIGHER, "far"),
    "fpr95": (LOWER, "ood"),
    "corruption": (HIGHER, "corruptions"),
    "corruption_gap": (LOWER, "corruptions"),
    "domain": (HIGHER, "domains"),
    "map_correlation": (HIGHER, "dense"),
    **dict.fromkeys(("miou", "kmeans_miou"), (HIGHER, "masks")),
}
LACKS = {
    "mapping": "the run's method trains no mapping; one that was fitted afterwards is measured as fitted_cosine and so on",
    "fitted mapping": "the run's mapping was trained: leave fitted_ out",
    "some mapping": "the run has no mapping: its method has none, and none could be fitted",
    "labels": "give labelled pictures: --data FOLDER with class folders, or --labels FILE.csv",
    "ood": "give strange pictures: --ood FOLDER",
    "near": "give strange pictures that are near: --ood near:FOLDER",
    "far": "give strange pictures that are far: --ood far:FOLDER",
    "corruptions": "add --corruptions",
    "domains": "give another domain: --domains FOLDER with the same class folders",
    "dense": "leave --no-dense out; of a run, whose teacher gives local features: those of a bundle are not evaluated",
    "masks": "give masks: --masks FOLDER",
}


def refuse_what_cannot_be_judged(rules: Sequence[Rule], given: dict[str, bool]) -> None:
    """TinkitError for a rule about a name that there is not, or that needs what is not given (`given`: need -> is it there)."""
    lacks = {name: "" if given.get(need, True) else LACKS[need] for name, (_, need) in NAMES.items()}
    check(rules, {name: better for name, (better, _) in NAMES.items()}, lacks)


def refuse_without_labels(rules: Sequence[Rule]) -> None:
    """TinkitError for a rule that wants labels, once it is known that the pictures have none."""
    for rule in rules:
        if NAMES[rule.name][1] in ("labels", "domains"):
            raise TinkitError("The budget names what needs labels.", seen=rule.text, next_step=LACKS["labels"])
