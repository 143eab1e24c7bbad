"""Load as a product brings it, in MLPerf's words: single stream, multi stream, offline, and a server with Poisson arrivals.

From MLPerf Inference's rules (mlcommons/inference_policies, inference_rules.adoc, chapters "Scenarios" and "LoadGen
Operation") come the four names, what a sample and a query are, one query after the other in the single and the multi stream
(8 samples a query), everything at once in offline, the Poisson arrivals, and latency counted from when a query was
scheduled. This is no MLPerf run and no number of it may be called one: LoadGen is not used, there is no accuracy run (the
exam is ours), no 600 seconds and no early-stopping estimate, pictures are not drawn from a library, offline's samples go on
until the time is over where LoadGen fixes their number beforehand, and the server is asked at one rate, given by the user,
where MLPerf looks for the highest one that keeps a latency.
"""

import time
from collections import deque
from dataclasses import asdict, dataclass

import numpy as np

from tinkit.device.latency import PERCENTILES
from tinkit.errors import TinkitError
from tinkit.strict import nearest

SINGLE, MULTI, OFFLINE, SERVER = NAMES = ("single-stream", "multi-stream", "offline", "server")
GIVE_UP = 10  # times the duration: then streams end with what there is, and are not valid
LATE = 2  # times the last arrival: then a server ends with what there is, and is not valid
BEHIND = (
    0.05  # of a server's queries: more of them without an answer when the last one arrives, and the queue had grown
)
SOON = 1e-9  # seconds: what rounding may leave of a sleep
MOST_ARRIVALS = 10**7
KEYS = {  # of the command line -> (field, type, lowest, highest)
    "duration": ("duration_s", float, 0.001, 86400),
    "samples": ("min_samples", int, 1, MOST_ARRIVALS),
    "rate": ("rate_per_s", float, 0.001, 100000),
    "query": ("samples_per_query", int, 1, 65536),
    "seed": ("seed", int, 0, 2**32 - 1),
}
ONLY = {"rate": SERVER, "query": MULTI}


@dataclass(frozen=True)
class Scenario:
    """At least `duration_s` seconds and `min_samples` pictures; rate_per_s: queries a second, of a server only.

    samples_per_query: pictures in a query, of the multi stream only; elsewhere a query is one picture, and all of them
    in offline.
    """

    name: str
    duration_s: float = 10.0
    min_samples: int = 500
    rate_per_s: float = 0.0
    samples_per_query: int = 8
    seed: int = 0


def parse_scenario(text):
    """`server:rate=200,duration=10,samples=500` -> `Scenario`; keys: duration, samples, rate, query, seed.

    Raises TinkitError for unknown and doubled names, for values out of range, and for a server without a rate.
    """
    name, colon, rest = text.partition(":")
    if name not in NAMES:
        raise _wrong(text, "no scenario {!r}".format(name), nearest(name, NAMES))
    values = {}
    for part in rest.split(",") if colon else ():
        key, _, value = part.partition("=")
        if key not in KEYS:
            raise _wrong(text, "no setting {!r}".format(part), nearest(key, KEYS))
        if ONLY.get(key, name) != name:
            raise _wrong(text, "{} in {}".format(key, name), "{} is of {} only".format(key, ONLY[key]))
        if KEYS[key][0] in values:
            raise _wrong(text, "{} twice".format(key), "give it once")
        values[KEYS[key][0]] = _number(text, key, value)
    scenario = Scenario(name, **values)
    if name == SERVER and not scenario.rate_per_s:
        raise _wrong(text, "a server without a rate", "add the queries a second: server:rate=200")
    if name == SERVER and scenario.rate_per_s * scenario.duration_s > MOST_ARRIVALS:
        raise _wrong(text, "more than {:.0e} queries".format(MOST_ARRIVALS), "take a lower rate or a shorter duration")
    return scenario


def arrivals(scenario):
    """Seconds after the start at which a server's queries arrive: a Poisson process of the rate and the seed.

    As many as the duration and the sample count ask for; the last one is not before the duration is over.
    """
    rng, gaps, passed, count = np.random.default_rng(scenario.seed), [], 0.0, 0
    while passed < scenario.duration_s or count < scenario.min_samples:
        gaps.append(rng.exponential(1 / scenario.rate_per_s, 1000))
        passed, count = passed + gaps[-1].sum(), count + 1000
    times = np.cumsum(np.concatenate(gaps))
    needed = max(int(np.searchsorted(times, scenario.duration_s)) + 1, scenario.min_samples)
    return times[:needed]


def play(scenario, run_of_batch, max_batch, clock=time.perf_counter, sleep=time.sleep):
    """Bring the load and measure: the settings, "queries", "samples", "seconds", latencies and "per_s" (samples).

    run_of_batch(n): runs n pictures, 1 to `max_batch`, and returns None, or the seconds that count where some of its time
    shall not. A query larger than that goes in parts. The server answers in order of arrival, as many at once as wait, and
    takes at least as long as its arrivals: `min_samples` at a low rate are a long time.
    Latency is that of a query, from its scheduled arrival to the end of its last part ("samples_ms" has them all); offline
    has one query and so None for all latencies. "valid" is False with a "reason" where duration or sample count were not
    reached, or where a server's queue grew. Clock and `sleep` in seconds; what waking up from `sleep` costs is part of a
    server's latency.
    """
    if max_batch < 1 or scenario.name not in NAMES or (scenario.name == SERVER and scenario.rate_per_s <= 0):
        raise ValueError("{} with a largest batch of {}".format(scenario, max_batch))
    watch = _Watch(run_of_batch, clock)
    if scenario.name == SERVER:
        latencies, fell_behind = _serve(scenario, watch, max_batch, sleep)
    else:
        latencies, fell_behind = _stream(scenario, watch, max_batch, clock), ""
    seconds = watch.now()
    reason = fell_behind or _too_little(scenario, watch.samples, seconds)
    offline = scenario.name == OFFLINE
    found = dict(asdict(scenario), scenario=scenario.name, max_batch=max_batch)
    del found["name"]
    found.update(queries=1 if offline else len(latencies), samples=watch.samples, seconds=seconds)
    for name, percent in PERCENTILES.items():
        found[name] = None if offline or not latencies else float(np.percentile(latencies, percent)) * 1e3
    found["mean_ms"] = None if offline or not latencies else float(np.mean(latencies)) * 1e3
    found["samples_ms"] = [] if offline else [round(latency * 1e3, 6) for latency in latencies]
    found.update(per_s=watch.samples / seconds if seconds > 0 else 0.0, valid=not reason, reason=reason)
    return found


class _Watch:
    """Seconds since it was made, without those that a run says do not count; and the pictures that were run."""

    def __init__(self, run_of_batch, clock):
        self._run, self._clock, self._start, self.samples = run_of_batch, clock, clock(), 0

    def now(self):
        return self._clock() - self._start

    def run(self, batch):
        begin = self.now()
        counted = self._run(batch)
        self.samples += batch
        if counted is not None:
            self._start += self.now() - begin - counted


def _stream(scenario, watch, max_batch, clock):
    """Seconds of each query, one after the other; offline's parts are cut from one query without an end."""
    size = {SINGLE: 1, MULTI: scenario.samples_per_query, OFFLINE: max_batch}[scenario.name]
    latencies, give_up = [], clock() + GIVE_UP * scenario.duration_s
    while True:
        begin = watch.now()
        for done in range(0, size, max_batch):
            watch.run(min(max_batch, size - done))
        end = watch.now()
        latencies.append(end - begin)
        if (watch.samples >= scenario.min_samples and end >= scenario.duration_s) or clock() >= give_up:
            return latencies


def _serve(scenario, watch, max_batch, sleep):
    """(seconds from arrival to answer of each query that was answered, in which words the server fell behind or "")."""
    waiting, latencies, late = deque(arrivals(scenario).tolist()), [], 0
    count, last = len(waiting), waiting[-1]
    while waiting:
        now = watch.now()
        if now >= LATE * last:
            break
        if waiting[0] > now + SOON:
            sleep(waiting[0] - now)
            continue
        batch = []
        while waiting and waiting[0] <= now + SOON and len(batch) < max_batch:
            batch.append(waiting.popleft())
        watch.run(len(batch))
        end = watch.now()
        latencies.extend(end - arrival for arrival in batch)
        late += len(batch) if end > last else 0
    if waiting:  # what they would have waited is in no percentile
        told = "the server fell behind: stopped {:.3g} s after the start with {} of {} queries unanswered"
        return latencies, told.format(watch.now(), len(waiting), count)
    if late <= max(BEHIND * count, 2 * max_batch):  # a batch in work and one that waits are no queue
        return latencies, ""
    told = "the server fell behind: {} of {} queries had no answer when the last one arrived"
    return latencies, told.format(late, count)


def _too_little(scenario, samples, seconds):
    if samples < scenario.min_samples:
        return "only {} samples of {} in {:.3g} s".format(samples, scenario.min_samples, seconds)
    if seconds < scenario.duration_s:
        return "only {:.3g} s of {:g} s".format(seconds, scenario.duration_s)
    return ""


def _number(text, key, value):
    _, kind, low, high = KEYS[key]
    try:
        number = kind(value)
    except ValueError:
        number = None
    if number is None or not low <= number <= high:  # also what is not a number
        wanted = "a whole number" if kind is int else "a number"
        raise _wrong(text, "{} = {!r}".format(key, value), "{} from {:g} to {:g}".format(wanted, low, high))
    return number


def _wrong(text, seen, next_step):
    return TinkitError("The scenario is not understood.", where=text, seen=seen, next_step=next_step)
