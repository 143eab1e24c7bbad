"""What a board sends as a report, and how it is checked: nothing of it is believed, and nothing of it is run.

A report must be of this schema, of the model that was sent and of the budgets that were set, whole, every part of its
type (tinkit/host/board/shapes.py), and its percentiles and verdicts those of its own numbers. What the host knows itself (bundle,
device, title, the host's hops of the chain) is put in again from here, and so are the budgets and the verdict, judged
anew. What cannot be checked is whether the board measured what it says.
"""

import os
from dataclasses import replace
from math import isclose

import numpy as np

from tinkit.bundle import EXAM, MODEL
from tinkit.device.judging import judge_budgets, judge_report, measured_of
from tinkit.device.latency import PERCENTILES
from tinkit.device.profile import bundle_facts
from tinkit.errors import CannotJudge, TinkitError
from tinkit.fidelity import FAILED, NOT_JUDGED, PASSED, Fidelity
from tinkit.host.board import shapes
from tinkit.host.board.foreign import clean, parsed
from tinkit.results import LATENCY_PROTOCOL, REPORT_SCHEMA, Report
from tinkit.truth import Truth

MAX_REPORT_BYTES = 64 << 20
MAX_ENGINE_BYTES = 8 << 30
VERDICTS = (PASSED, FAILED, NOT_JUDGED)
PLAYED_BACK = "played back"  # how the only rehearsal that a board may tell begins
TELLS_PRECISION = ("tensorrt", "openvino")
MOST_MS = 1e6  # of one run: a quarter of an hour


def told_error(message, host):
    """The TinkitError (or CannotJudge) that a board tells as an "error" frame."""
    texts = {key: clean(message[key]) for key in ("what", "where", "seen", "next") if message.get(key)}
    kind = CannotJudge if message.get("exit_code") == CannotJudge.exit_code else TinkitError
    where = f"{host}: {texts['where']}" if "where" in texts else host
    what = texts.get("what", "The board could not finish, and does not say why.")
    return kind(what, where=where, seen=texts.get("seen"), next_step=texts.get("next"))


def steps_of(message):
    """{step: seconds} of a "done" frame; what is no step is left out."""
    told = message.get("steps")
    if not isinstance(told, dict):
        return {}
    return {clean(name, 40): float(seconds) for name, seconds in list(told.items())[:64] if _is_seconds(seconds)}


def _is_seconds(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e9


def checked_report(data, where, bundle, device, budget, path, board_root=None):
    """The `Report` in the bytes that a board sent as report.json, with everything that the host knows itself put in.

    bundle: the opened `Bundle` that was sent; device: the `DeviceProfile` of the job; budget: {name: limit} of the job;
    path: where the report will lie here; board_root: where the board was played back from, the only rehearsal there is.
    Raises TinkitError for a report that is not of this bundle and job, or that contradicts itself.
    """
    value = parsed(data, "a report", where)
    if value.get("schema") != REPORT_SCHEMA:
        raise _refused("of another schema", where, f"{value.get('schema')!r}, wanted {REPORT_SCHEMA!r}")
    report = _built(value, where)
    ours = bundle.manifest["files"][MODEL]["sha256"]
    if report.bundle.get("model_sha256") != ours:
        raise _refused("of another model", where, f"{report.bundle.get('model_sha256')!r}, sent was {ours!r}")
    played_back = bool(board_root) and os.path.abspath(board_root) != "/"
    if bool(report.rehearsal) != played_back or not report.rehearsal.startswith(PLAYED_BACK * played_back):
        wanted = f"{PLAYED_BACK} ..." if played_back else ""
        raise _refused("of another rehearsal", where, f"{report.rehearsal!r}, wanted {wanted!r}")
    host_hops = [Fidelity.from_json(hop) for hop in bundle.manifest.get("chain", [])]
    if len(report.chain) < len(host_hops):
        raise _refused("without the hops of the host", where, f"{len(report.chain)} hops")
    hops = report.chain[len(host_hops) :]
    limits = {entry["name"]: entry.get("limit") for entry in report.budgets}
    if limits != budget or len(report.budgets) != len(budget):
        raise _refused("of other budgets", where, f"{limits}, set were {budget}")
    _refuse_missing(report, hops, bundle, device, where)
    for told in contradictions(report, hops, bundle.target):
        raise _refused("that contradicts itself", where, told)
    file_mb = os.path.getsize(bundle.model_path) / 1e6
    budgets = judge_budgets(budget, measured_of(report, file_mb), report.latency, report.rehearsal, report.scenarios)
    truth = Truth.from_json(report.truth) if report.truth else None
    return replace(
        report,
        title=f"{bundle.name} on {device.name}" + (f" (rehearsal: {report.rehearsal})" if report.rehearsal else ""),
        verdict=judge_report(host_hops, hops, budgets, truth, bundle.manifest.get("host_gate", {}).get("verdict")),
        budgets=budgets,
        bundle=bundle_facts(bundle, file_mb),
        device=device.to_json(),
        chain=host_hops + hops,
        path=os.path.abspath(path),
    )


def _built(value, where):
    """A Report from plain data whose every part is of its type."""
    try:
        shapes.check_report(value)
        report = Report.from_json(value)
        truths = [Truth.from_json(report.truth)] if report.truth else []
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise _refused("that is not as reports are", where, clean(error, 200)) from None
    verdicts = [one.verdict for one in (report, *report.chain, *truths)]
    verdicts += [entry.get("verdict") for entry in report.budgets]
    if any(verdict not in VERDICTS for verdict in verdicts):
        raise _refused("with a verdict that is none", where, str(verdicts))
    return report


def _refuse_missing(report, hops, bundle, device, where):
    """A board that examined and measured tells of every output, of every batch, and of the precision where it can."""
    target = bundle.target
    outputs = set(target.outputs) - {hop.output for hop in hops}
    if EXAM in bundle.manifest["files"] and outputs:
        raise _refused("without an exam", where, f"nothing about {', '.join(sorted(outputs))}")
    timed = {run.batch for run in report.latency if not run.conditions.get("cuda_graph")}
    missing = [n for n in device.batches if target.batch.min <= n <= target.batch.max and n not in timed]
    if missing:
        raise _refused("without a latency", where, f"nothing about batch {', '.join(map(str, missing))}")
    if target.runtime in TELLS_PRECISION and bundle.manifest.get("node_macs") and not report.truth:
        raise _refused("without the precision", where, f"{target.runtime} tells in which it computes")


def contradictions(report, hops, target):
    """In words, where numbers of a report are not those of its own samples, or a verdict is not that of its own numbers."""
    for run in report.latency:
        name = f"batch {run.batch}"
        if run.protocol != LATENCY_PROTOCOL:
            yield f"{name}: protocol {run.protocol!r}, wanted {LATENCY_PROTOCOL!r}"
        if run.samples != len(run.samples_ms):
            yield f"{name}: {run.samples} samples, {len(run.samples_ms)} told"
        yield from _of_samples(name, vars(run), run.samples_ms, shapes.TIMES)
        if run.gpu:
            yield from _of_samples(f"{name}, gpu", run.gpu, run.gpu["samples_ms"], shapes.TIMES)
    for played in report.scenarios:
        yield from _of_samples(played["scenario"], played, played["samples_ms"], shapes.OF_SCENARIO)
    for hop in hops:
        if hop.verdict == PASSED and (report.rehearsal or not _passes(hop, target)):
            yield f"{hop.hop} ({hop.output}): passed, with cosine {hop.cosine_min:g}, error share {hop.max_error_share:g}"
    truth = report.truth
    if truth and truth["verdict"] == PASSED:
        asked = truth["precision"] in (target.precision, target.compute)
        if not asked or truth["macs"].get(truth["precision"], 0) < target.floor:
            yield f"precision {truth['precision']}: passed, with {truth['macs']}"


def _of_samples(name, told, samples_ms, statistics):
    """Statistics that are not those of the samples, which are rounded to a nanosecond; without samples, None is right."""
    found = {}
    if samples_ms:
        values = np.percentile(samples_ms, list(PERCENTILES.values())).tolist()
        found = dict(zip(PERCENTILES, values), mean_ms=float(np.mean(samples_ms)), min_ms=min(samples_ms))
        if not 0 <= found["min_ms"] <= max(samples_ms) <= MOST_MS:
            yield f"{name}: samples from {found['min_ms']:g} to {max(samples_ms):g} ms"
    for key in statistics:
        seen, right = told.get(key), found.get(key)
        if (seen is None) != (right is None) or not (right is None or isclose(seen, right, rel_tol=1e-6, abs_tol=1e-6)):
            yield f"{name}: {key} {seen}, of its samples {right}"


def _passes(hop, target):
    """Whether the numbers of a device's hop are within the target's gate for it."""
    if hop.output == "pixels":
        return hop.pictures > 0 and hop.max_error <= target.pixel_gate
    if hop.output not in target.outputs:
        return False
    gate = target.gate["frame"] if target.frame else target.gate_of(hop.output)
    near = hop.cosine_min >= gate.min_cosine and hop.cosine_mean >= gate.min_cosine_mean
    return hop.pictures > 0 and near and hop.max_error_share <= gate.max_error_share


def _refused(what, where, seen):
    return TinkitError(
        f"The board sent a report {what}: it is not used.",
        where=where,
        seen=clean(seen, 300),
        next_step="run it again; if it stays so, remove the board's cache folder (~/.cache/tinkit) and look at the board",
    )
