"""What a board sends as a report, and how it is checked: nothing of it is believed, and nothing of it is run.

A report must be of this schema, of the model that was sent and of the budgets that were set, and every field of its type;
what the host knows itself (bundle, device, title, the host's hops of the chain, the verdict of the host gate) is put in
again from here. What cannot be checked is whether the board measured what it says.
"""

import os
from dataclasses import fields, replace

from tinkit.bundle import MODEL
from tinkit.device.profile import bundle_facts
from tinkit.errors import CannotJudge, TinkitError
from tinkit.fidelity import FAILED, NOT_JUDGED, PASSED, Fidelity
from tinkit.host.foreign import clean, parsed
from tinkit.results import REPORT_SCHEMA, Latency, Report

MAX_REPORT_BYTES = 64 << 20
MAX_ENGINE_BYTES = 8 << 30
VERDICTS = (PASSED, FAILED, NOT_JUDGED)
KINDS = {str: str, float: (int, float), int: int, bool: bool}


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


def checked_report(data, where, bundle, device, budget, path):
    """The `Report` in the bytes that a board sent as report.json, with everything that the host knows itself put in.

    bundle: the opened `Bundle` that was sent; device: the `DeviceProfile` of the job; budget: {name: limit} of the job;
    path: where the report will lie here. Raises TinkitError for a report that is not of this bundle and job.
    """
    value = parsed(data, "a report", where)
    if value.get("schema") != REPORT_SCHEMA:
        raise _refused("of another schema", where, f"{value.get('schema')!r}, wanted {REPORT_SCHEMA!r}")
    report = _built(value, where)
    ours = bundle.manifest["files"][MODEL]["sha256"]
    if report.bundle.get("model_sha256") != ours:
        raise _refused("of another model", where, f"{report.bundle.get('model_sha256')!r}, sent was {ours!r}")
    host_hops = [Fidelity.from_json(hop) for hop in bundle.manifest.get("chain", [])]
    if len(report.chain) < len(host_hops):
        raise _refused("without the hops of the host", where, f"{len(report.chain)} hops")
    limits = {str(entry.get("name")): entry.get("limit") for entry in report.budgets}
    if limits != budget or len(report.budgets) != len(budget):
        raise _refused("of other budgets", where, f"{limits}, set were {budget}")
    host_failed = FAILED in [bundle.manifest.get("host_gate", {}).get("verdict"), *(hop.verdict for hop in host_hops)]
    return replace(
        report,
        title=f"{bundle.name} on {device.name}" + (f" (rehearsal: {report.rehearsal})" if report.rehearsal else ""),
        verdict=FAILED if host_failed else report.verdict,
        bundle=bundle_facts(bundle, os.path.getsize(bundle.model_path) / 1e6),
        device=device.to_json(),
        chain=host_hops + report.chain[len(host_hops) :],
        path=os.path.abspath(path),
    )


def _built(value, where):
    """A Report from plain data whose every field is of its type."""
    try:
        _check_types(Report, {**value, "chain": [], "latency": []})
        for run in value["latency"]:
            _check_types(Latency, run)
        for hop in value["chain"]:
            _check_types(Fidelity, {**hop, **{name: float(hop[name]) for name in hop if name in HOP_NUMBERS}})
        report = Report.from_json(value)
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise _refused("that is not as reports are", where, clean(error, 200)) from None
    verdicts = [report.verdict, *(hop.verdict for hop in report.chain)]
    verdicts += [entry.get("verdict") for entry in report.budgets]
    if any(verdict not in VERDICTS for verdict in verdicts):
        raise _refused("with a verdict that is none", where, str(verdicts))
    return report


HOP_NUMBERS = ("cosine_mean", "cosine_p1", "cosine_min", "max_error", "max_error_share")  # "inf" is text in JSON
LISTS_OF_NUMBERS = ("samples_ms",)
LISTS_OF_OBJECTS = ("budgets", "throughput", "scenarios", "worst")


def _check_types(cls, value):
    """Raises TypeError where a field of the dataclass `cls` has another type in the dict `value`."""
    if not isinstance(value, dict):
        raise TypeError(f"{cls.__name__} is no object")
    for field in fields(cls):
        if field.name not in value:
            continue  # a missing one is found by the class itself, or has a default
        seen, wanted = value[field.name], KINDS.get(field.type, getattr(field.type, "__origin__", object))
        wanted = wanted if isinstance(wanted, (type, tuple)) else object  # Optional: looked at where it is used
        if not isinstance(seen, wanted) or (isinstance(seen, bool) and field.type in (int, float)):
            raise TypeError(f"{field.name} is {type(seen).__name__}")
        if field.name in LISTS_OF_OBJECTS and not all(isinstance(entry, dict) for entry in seen):
            raise TypeError(f"{field.name} holds something else than objects")
        if field.name in LISTS_OF_NUMBERS and not all(type(entry) in (int, float) for entry in seen):
            raise TypeError(f"{field.name} holds something else than numbers")


def _refused(what, where, seen):
    return TinkitError(
        f"The board sent a report {what}: it is not used.",
        where=where,
        seen=clean(seen, 300),
        next_step="run it again; if it stays so, remove the board's cache folder (~/.cache/tinkit) and look at the board",
    )
