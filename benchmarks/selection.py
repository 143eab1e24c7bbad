"""Which pictures to label first: every method of `tinkit select` against random choice, by what few labels then bring.

    python benchmarks/selection.py FOLDER_WITH_TARS [--work runs/select] [--seeds 20] [--write docs/select.md]

CIFAR-10 (10 classes, balanced) and PACS (7 classes in four styles, as many as there are of each). Features of the packaged
teacher at its own size, made once. Every seed draws its own pool, half of the embedded pictures, makes its own t-SNE of it and
chooses 10, 20 .. 100 pictures of the pool by each method, on the map and on the features as they are. Then all that is known
are the labels of the chosen: how many classes are among them, and how often a kNN and a linear probe on them are right on
held-out pictures. "random" draws from the pool; "random by class" knows all labels and draws as many of each class.

Each seed leaves a file when done, so the same command goes on where it stopped. One core is enough. The file is not called
select.py: beside the other benchmarks it would stand in the way of Python's own module `select`.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
import warnings

import numpy as np
from command import run_command
from method_pictures import STYLES, _hashes, _read, _write
from method_pictures import choose as draw
from selection_table import markdown, summarise, write

from tinkit import files

TEACHER = "efficientnet-lite2"
BUDGETS = tuple(range(10, 101, 10))
EMBEDDED, HELD_OUT = 3000, 1000  # pictures of a set
CHOSEN_BY = ("k-medoids", "k-centre", "mini-max", "maxi-min")
MAP = ", map"  # after a method's name: chosen on the map
RANDOM, BY_CLASS = "random", "random by class"
ROWS = (*(name + MAP for name in CHOSEN_BY), *CHOSEN_BY, RANDOM, BY_CLASS)
SETS = {"cifar10": "CIFAR-10", "pacs": "PACS"}


def cifar10(data, embedded, held_out):
    """{part: [(name, bytes)]}; names are CLASS/FILE. As many of every class, and no content in both parts."""
    train, test = (_read(os.path.join(data, f"cifar10-{part}.tar.gz")) for part in ("train", "test"))
    (chosen,) = draw(_hashes(train), (embedded // 10,))
    (others,) = draw(_hashes(test), (held_out // 10,), {content for _, content in _hashes(train)})
    return {"pool": [train[index] for index in chosen], "held-out": [test[index] for index in others]}


def pacs(data, embedded, held_out):
    """The same of all four styles, drawn as they come; names are STYLE/CLASS/FILE."""
    found = [(f"{style}/{name}", content) for style in STYLES for name, content in _read(f"{data}/pacs-{style}.tar")]
    anything = [("", content) for _, content in _hashes(found)]
    parts = draw(anything, (embedded, held_out))
    return {name: [found[index] for index in part] for name, part in zip(("pool", "held-out"), parts)}


def features_of(name, arguments):
    """(features by part (N,D) float32, names by part), through the feature store; pictures are laid out once."""
    from tinkit.host.images import scan
    from tinkit.host.store import open_or_build
    from tinkit.host.teacher import load_teacher
    from tinkit.host.views import EVALUATION, AllViews, ViewPolicy

    root = os.path.join(arguments.work, f"pictures-{name}-{arguments.embedded}-{arguments.held_out}")
    if not os.path.exists(os.path.join(root, "complete")):
        found = {"cifar10": cifar10, "pacs": pacs}[name](arguments.data, arguments.embedded, arguments.held_out)
        for part, pictures in found.items():
            for picture in pictures:
                _write(os.path.join(root, part), *picture)
        files.write_text(os.path.join(root, "complete"), "")
    teacher, rows, names = load_teacher(TEACHER), {}, {}
    for part in ("pool", "held-out"):
        pictures = list(scan(os.path.join(root, part), strict=True).usable)
        size = teacher.preprocessing
        views = AllViews(pictures, ViewPolicy(), [size], size.crop_pct, numbers=[EVALUATION])
        store = open_or_build(os.path.join(arguments.work, "stores"), teacher, views, parts=(), dtype="float32")
        rows[part], names[part] = np.array(store.global_rows()), [picture.name for picture in pictures]
    return rows, names


def numbered(names):
    """(class numbers by part, "style and class" numbers of the pool); the class is the folder that the picture lies in."""
    classes = sorted({os.path.basename(os.path.dirname(name)) for name in names["pool"]})
    folders = sorted({os.path.dirname(name) for name in names["pool"]})
    labels = {
        part: np.array([classes.index(os.path.basename(os.path.dirname(name))) for name in of_part])
        for part, of_part in names.items()
    }
    return labels, np.array([folders.index(os.path.dirname(name)) for name in names["pool"]])


def one_seed(seed, rows, labels, kinds, pictures):
    """The result of one seed, plain data: {"rows": {method: {budget: numbers}}, seconds, ...}."""
    from tinkit.host.select.choose import choose
    from tinkit.host.select.manifold import t_sne
    from tinkit.host.select.points import points_of

    began = time.monotonic()
    pool = np.sort(np.random.default_rng([seed, 1]).permutation(len(rows["pool"]))[:pictures])
    features, known = rows["pool"][pool], labels["pool"][pool]
    on_map = points_of(t_sne(features, seed), "euclidean")
    mapped = time.monotonic()
    plain = points_of(features, "cosine")
    found = {name: {} for name in ROWS}
    for name in ROWS:
        method = name.removesuffix(MAP)
        for budget in BUDGETS:
            if name == BY_CLASS:
                chosen = by_class(known, budget, seed)
            else:
                chosen = choose(on_map if name.endswith(MAP) else plain, budget, method, seed)
            found[name][str(budget)] = {
                "classes": len(np.unique(known[chosen])),
                "kinds": len(np.unique(kinds[pool][chosen])),
                **judge(features, known, chosen, rows["held-out"], labels["held-out"]),
            }
    ended = time.monotonic()
    return {"seed": seed, "rows": found, "map_s": mapped - began, "rest_s": ended - mapped, "commit": commit()}


def by_class(labels_N, budget, seed):
    """As many of each class as can be, the rest of classes drawn; pictures drawn within each."""
    random = np.random.default_rng([seed, 2])
    order = random.permutation(len(labels_N))
    groups = [list(order[labels_N[order] == number]) for number in random.permutation(np.unique(labels_N))]
    chosen = []
    while len(chosen) < budget:
        for group in groups:
            if group and len(chosen) < budget:
                chosen.append(group.pop())
    return np.array(chosen)


def judge(features, known, chosen, queries, truth):
    """Accuracies on held-out pictures of what the chosen ones' labels teach; columns standardised on the whole pool."""
    from sklearn.linear_model import LogisticRegression

    from tinkit.fidelity import knn_predict

    taught = known[chosen]
    says = knn_predict(features[chosen], taught, queries, k=min(10, len(chosen)))
    mean_D, sd_D = features.mean(0), features.std(0) + 1e-6
    if len(np.unique(taught)) > 1:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The number of unique classes")  # few labels is what this is about
            model = LogisticRegression(max_iter=300, tol=1e-3).fit((features[chosen] - mean_D) / sd_D, taught)
        probe = model.predict((queries - mean_D) / sd_D)
    else:
        probe = np.full(len(truth), taught[0])
    return {"knn": float((says == truth).mean()), "probe": float((probe == truth).mean())}


def commit():
    """The checkout's commit, with a plus when it was changed; "unknown" outside of one."""
    try:
        here = os.path.dirname(os.path.abspath(__file__))
        command = ["git", "-C", here, "describe", "--always", "--dirty=+"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def work_off(name, arguments):
    """The results of all seeds of a set, those of earlier calls among them. Features only where a seed is missing."""
    paths = {seed: os.path.join(result_folder(arguments), f"{name}-{seed}.json") for seed in range(arguments.seeds)}
    missing = [seed for seed, path in paths.items() if not os.path.exists(path)]
    if missing:
        rows, names = features_of(name, arguments)
        labels, kinds = numbered(names)
        for seed in missing:
            result = one_seed(seed, rows, labels, kinds, arguments.pool)
            result["classes"], result["kinds"] = (int(of.max()) + 1 for of in (labels["pool"], kinds))
            files.write_json(paths[seed], result)
            print(f"{name} seed {seed}: {result['map_s']:.0f} + {result['rest_s']:.0f} s", file=sys.stderr, flush=True)
    return [files.read_json(path, "A result") for path in paths.values()]


def result_folder(arguments):
    """Results of other sizes are kept apart."""
    return os.path.join(arguments.work, f"results-{arguments.embedded}-{arguments.pool}-{arguments.held_out}")


def conditions(arguments, results):
    import sklearn
    import torch

    every = [result for of_set in results.values() for result in of_set]
    commits = sorted({result["commit"] for result in every})
    seconds = [sum(result[part] for result in every) / len(every) for part in ("map_s", "rest_s")]
    return (
        f"{TEACHER} (ImageNet) at its own size; {arguments.embedded:,} pictures embedded of each set, a pool of "
        f"{arguments.pool:,} of them drawn by each seed, {arguments.held_out:,} held out; {arguments.seeds} seeds, mean ± "
        f"sd. Map: t-SNE, cosine, perplexity 40, 1,000 iterations, one for each seed; without the map by cosine. kNN: "
        f"k = 10, weight exp(cosine / 0.07), by the chosen pictures' labels alone; probe: logistic regression, C = 1, columns "
        f"standardised on the pool, labels of the chosen alone. A seed took {seconds[0]:.0f} s for its map and "
        f"{seconds[1]:.0f} s for the rest (mean). scikit-learn {sklearn.__version__}, torch "
        f"{torch.__version__.split('+')[0]}, {platform.machine()} CPU; commit {', '.join(commits)}."
    )


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with cifar10-{train,test}.tar.gz and pacs-*.tar")
    parser.add_argument("--work", default="runs/select", help="where pictures, features and results go")
    parser.add_argument("--sets", default=",".join(SETS), help="with commas between")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument(
        "--embedded", type=int, default=EMBEDDED, help="pictures of a set; half of them are a seed's pool"
    )
    parser.add_argument("--held-out", type=int, default=HELD_OUT)
    parser.add_argument("--write", help="save the page as Markdown here, with JSON and SVG beside it")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.sets.split(",") if name not in SETS]
    if unknown:
        parser.error(f"no such set: {', '.join(unknown)}; sets: {', '.join(SETS)}")
    arguments.pool = arguments.embedded // 2
    if arguments.pool < max(BUDGETS) or arguments.seeds < 1:
        parser.error(f"a pool must hold {max(BUDGETS)} pictures, and there must be a seed")
    return arguments


def main():
    arguments = parse()
    results = {name: work_off(name, arguments) for name in arguments.sets.split(",")}
    summary = {name: summarise(of_set, ROWS, BUDGETS, RANDOM) for name, of_set in results.items()}
    text = conditions(arguments, results)
    print(markdown(summary, SETS) + "\n\n" + text)
    if arguments.write:
        write(arguments.write, summary, SETS, text)
    return 0


if __name__ == "__main__":
    run_command(main)
