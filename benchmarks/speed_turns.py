"""What the measurements of benchmarks/speed.py share: things done in turns, the device, the loaders' share of the cores."""

import os


def in_turns(measures, rounds, *arguments, discard=1):
    """name -> the rates of all rounds, after `discard` rounds that do not count."""
    found = {name: [] for name in measures}
    for number in range(discard + rounds):
        for name, measure in measures.items():
            rate = measure(*arguments)
            if number >= discard:
                found[name].append(rate)
    return found


def device():
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def workers():
    return min(8, max(1, (os.cpu_count() or 1) // 2))


def threads(settings=None):
    from tinkit.host.distill.threads import threads_beside, worker_count

    return threads_beside(workers() if settings is None else worker_count(settings))
