"""`tinkit predict`: what a bundle with a head says about pictures, in words; and a command of its own for a board.

Picture files -> the one decoder -> the target's runtime -> softmax of `logits` -> class names of the manifest. Answers
stream: a million pictures need the memory of their names and of one batch. A picture that cannot be read is an answer
as well, one that says why. numpy, the runtime and Pillow are enough; without click it is
`python3 -m tinkit.device.predict BUNDLE PICTURES`.
"""

import argparse
import json
import os
import sys
from dataclasses import dataclass
from typing import Tuple

import numpy as np

from tinkit.bundle import Bundle, open_bundle
from tinkit.device import pictures, sitting
from tinkit.device.runtime import open_runtime
from tinkit.errors import EXIT_OK, EXIT_USER, Interrupted, TinkitError

BATCH = 16  # pictures decoded at a time, where the target takes so many
RUNTIMES = ("onnxruntime", "openvino", "tensorrt")
NO_HEAD = "tinkit head RUN --data FOLDER fits one; tinkit export RUN --head NAME exports with it"


@dataclass(frozen=True)
class Answer:
    """Of one picture: (class name, probability in 0..1) of the likeliest classes, first first; or why there is none.

    A probability is the softmax of the head's logits: how sure the head is, not how often it is right.
    """

    picture: str
    labels: Tuple[Tuple[str, float], ...] = ()
    error: str = ""

    def to_json(self):
        if self.error:
            return {"picture": self.picture, "error": self.error}
        return {"picture": self.picture, "labels": [{"label": name, "probability": p} for name, p in self.labels]}


def predict(bundle, paths, top=3, threads=1, runtime=None, say=None):
    """An iterator over the `Answer`s of the pictures in `paths` (files, and folders in any depth), in that order.

    bundle: a path or an opened `Bundle`. runtime: another than the target's own, by its name; never taken by itself.
    Raises TinkitError for a bundle without a head and for paths without a picture, at once; CannotJudge where the
    runtime is missing, at the first answer.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    if top < 1:
        raise TinkitError("At least one label a picture.", seen="top {}".format(top))
    if runtime is not None and runtime not in RUNTIMES:
        raise TinkitError("There is no such runtime.", seen=runtime, next_step="one of " + ", ".join(RUNTIMES))
    return _answers(opened, _files(paths), top, class_names(opened), threads, runtime or opened.target.runtime, say)


def class_names(bundle):
    """The names of the classes in the order of the logits; numbers where the head's weights brought no names.

    Raises TinkitError for a bundle without a head, and for names that do not fit its logits.
    """
    outputs = {tensor["name"]: tensor["shape"] for tensor in bundle.manifest["tensors"]["outputs"]}
    if "logits" not in outputs:
        raise TinkitError("The bundle gives no labels: it was exported without a head.", where=bundle.path,
                          seen="outputs " + ", ".join(sorted(outputs)), next_step=NO_HEAD)  # fmt: skip
    names, count = bundle.manifest.get("classes"), outputs["logits"][-1]
    if names is None and isinstance(count, int):
        return ["class {}".format(number) for number in range(count)]
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        raise TinkitError("The class names in the bundle's manifest do not fit its logits.", where=bundle.path,
                          seen="{} classes".format(count), next_step="export the bundle again")  # fmt: skip
    return names


def softmax(logits_BC):
    """Probabilities (B, C) float64; a row that is not finite stays so."""
    with np.errstate(invalid="ignore"):
        shifted = np.asarray(logits_BC, np.float64) - np.max(logits_BC, axis=1, keepdims=True)
        powers = np.exp(shifted)
        return powers / powers.sum(axis=1, keepdims=True)


def in_words(answer):
    """One line for a person: `photo.jpg  cat 91.3 %  dog 7.2 %`."""
    told = ["{} {:.1f} %".format(_plain(name), 100 * share) for name, share in answer.labels]
    return "  ".join([_plain(answer.picture), *(["not read: " + _plain(answer.error)] if answer.error else told)])


def as_json(answer):
    """One line for a program, in ASCII: a file name that is not UTF-8 comes through as Python's json writes it."""
    return json.dumps(answer.to_json(), allow_nan=False)


def _answers(bundle, paths, top, names, threads, kind, say):
    target, waiting = bundle.target, []
    fp32_nodes = bundle.manifest.get("fp32_nodes", ())
    with open_runtime(kind, bundle.model_path, threads, target, fp32_nodes, say) as runtime:
        sitting.check_tensors(bundle, runtime)
        for path in paths:
            waiting.append((path, *_look(path, bundle)))
            if len(waiting) == min(BATCH, target.batch.max):
                yield from _judged(bundle, runtime, waiting, top, names)
                waiting = []
        yield from _judged(bundle, runtime, waiting, top, names)


def _look(path, bundle):
    """(pixels as the model takes them, "") of a picture, or (None, why there are none)."""
    if not os.path.isfile(path):  # a named pipe would be waited for
        return None, "this is no file" if os.path.exists(path) else "there is no such file"
    try:
        if bundle.target.frame:
            return pictures.frame_pixels(path, bundle.target.frame), ""
        return pictures.network_pixels(path, bundle.preprocessing), ""
    except pictures.Unreadable as error:
        return None, str(error)


def _judged(bundle, runtime, looked, top, names):
    """The answers of one batch of (path, pixels or None, error)."""
    seen = [pixels for _, pixels, _ in looked if pixels is not None]
    rows = iter(())
    if seen:
        feeds = sitting.network_input(bundle, sitting.fill(np.stack(seen), bundle.target.batch.min))
        rows = iter(softmax(runtime.run(feeds)["logits"])[: len(seen)])
    return [
        Answer(path, error=error) if pixels is None else _answer(path, next(rows), top, names)
        for path, pixels, error in looked
    ]


def _answer(path, shares_C, top, names):
    if not np.isfinite(shares_C).all():
        return Answer(path, error="the model's answer is not finite")
    order = np.argsort(-shares_C, kind="stable")[:top]
    return Answer(path, tuple((names[number], float(shares_C[number])) for number in order))


def _files(paths):
    """The picture files of `paths`; a folder's are found now by their endings, a file is taken as it is."""
    found, endings = [], pictures.suffixes()
    for path in map(os.fspath, paths):
        found += _inside(path, endings) if os.path.isdir(path) else [path]
    if not found:
        raise TinkitError("There is no picture here.", where=", ".join(map(str, paths)) or None,
                          next_step="name picture files, or folders that hold some")  # fmt: skip
    return found


def _inside(root, endings):
    """Pictures below a folder, sorted. Linked folders are followed, loops are not; hidden ones are left out."""
    found, seen = [], set()
    for folder, subfolders, entries in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders[:] = []
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [os.path.join(folder, name) for name in entries if pictures.is_picture_name(name, endings)]
    return sorted(found)


def _plain(text):
    """Text that any terminal takes: control characters and broken UTF-8 as escapes."""
    readable = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in readable)


def main(argv=None):
    """The command; returns its exit code: 1 when a picture could not be read, the answers of the others all the same."""
    parser = argparse.ArgumentParser(
        prog="tinkit-predict", description="What a bundle with a head says about pictures."
    )
    parser.add_argument("bundle", help="the bundle's folder")
    parser.add_argument("pictures", nargs="+", help="picture files, and folders in any depth")
    parser.add_argument("--top", type=int, default=3, help="labels a picture (default 3)")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of a table")
    parser.add_argument("--threads", type=int, default=1, help="of onnxruntime (default 1)")
    parser.add_argument("--runtime", choices=RUNTIMES, help="another than the target's own")
    given = parser.parse_args(argv)
    try:
        answers = predict(given.bundle, given.pictures, given.top, given.threads, given.runtime)
        return show(answers, as_json if given.json else in_words)
    except TinkitError as error:
        sys.stderr.write("{}\n".format(error))
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")
        return Interrupted.exit_code
    except BrokenPipeError:  # `| head` has seen enough; what Python would flush at its end has no reader either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_USER


def show(answers, told):
    """Print each answer as soon as it is there, one line each by `told`; returns the exit code."""
    unread = 0
    for answer in answers:
        unread += bool(answer.error)
        encoding = sys.stdout.encoding or "ascii"  # a board's may be ASCII, and a class name is not
        sys.stdout.write(told(answer).encode(encoding, "backslashreplace").decode(encoding) + "\n")
        sys.stdout.flush()
    return EXIT_USER if unread else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
