"""Engines by content: the same parts find the engine, any other part does not, and nobody else's is ever loaded."""

import json
import os
import stat
from dataclasses import replace

import pytest

from tinkit.device.cuda import Gpu
from tinkit.device.engine_cache import EngineCache, open_foreign
from tinkit.device.engine_identity import differences, engine_identity, timing_identity
from tinkit.device.jetson import l4t_version, power_mode
from tinkit.errors import TinkitError

ORIN = Gpu(name="Orin", sm="8.7", multiprocessors=8, memory_bytes=8_000_000_000, integrated=True)
OPTIONS = {"precision": "fp16", "batch": (1, 1, 8), "fp32_nodes": ()}
JETSON = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.7, GCID: 42132812, BOARD: generic, EABI: aarch64\n",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0003-super\0nvidia,p3767-0003\0nvidia,tegra234\0",
    "var/lib/nvpmodel/status": "pmode:0001",
    "etc/nvpmodel.conf": "# < POWER_MODEL ID=1 NAME=old >\n< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n",
}


@pytest.fixture
def jetson(tmp_path):
    for path, text in JETSON.items():
        (tmp_path / "root" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / path).write_text(text)
    return tmp_path / "root"


@pytest.fixture
def identity(tmp_path, jetson):
    (tmp_path / "model.onnx").write_bytes(b"model")
    return engine_identity(tmp_path / "model.onnx", "10.3.0", ORIN, OPTIONS, str(jetson))


@pytest.fixture
def said():
    return []


@pytest.fixture
def cache(tmp_path, said):
    return EngineCache(tmp_path / "cache" / "engines", say=said.append)


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def test_the_identity_tells_boards_of_one_chip_apart(identity):
    assert (identity["gpu"], identity["sm"], identity["multiprocessors"], identity["memory_gib"]) == (
        "Orin",
        "8.7",
        8,
        7,
    )
    assert identity["module"] == "nvidia,p3768-0000+p3767-0003-super nvidia,p3767-0003 nvidia,tegra234"
    assert (identity["l4t"], identity["tensorrt"]) == ("36.4.7", "10.3.0")
    assert identity["options"] == {"precision": "fp16", "batch": [1, 1, 8], "fp32_nodes": []}
    assert identity == json.loads(json.dumps(identity))


def test_a_machine_that_is_no_jetson_has_no_module(tmp_path):
    assert (l4t_version(str(tmp_path)), power_mode(str(tmp_path))) == ("", "")
    assert timing_identity("11.4.0", ORIN, str(tmp_path))["module"] == ""


def test_the_power_mode_is_read_by_name_and_is_no_part_of_the_identity(jetson, identity, tmp_path):
    assert power_mode(str(jetson)) == "25W"
    (jetson / "var/lib/nvpmodel/status").write_text("pmode:0000")
    assert power_mode(str(jetson)) == "15W"
    assert engine_identity(tmp_path / "model.onnx", "10.3.0", ORIN, OPTIONS, str(jetson)) == identity
    (jetson / "var/lib/nvpmodel/status").write_text("pmode:0007")
    assert power_mode(str(jetson)) == "number 7"


def test_a_model_that_is_not_there_is_told(tmp_path):
    with pytest.raises(TinkitError, match="reading the model"):
        engine_identity(tmp_path / "nothing.onnx", "10.3.0", ORIN, OPTIONS)


def test_what_was_kept_is_found_again(cache, identity, said):
    assert cache.lookup(identity) is None
    path = cache.keep(identity, memoryview(b"plan"), {"seconds": 12.5, "power_mode": "25W"})
    assert cache.lookup(identity) == b"plan"
    assert cache.facts(identity) == {"seconds": 12.5, "power_mode": "25W"}
    assert path == cache.path(identity)
    assert said == []


def other_identities(tmp_path, jetson):
    model = tmp_path / "model.onnx"
    yield "tensorrt", engine_identity(model, "10.3.1", ORIN, OPTIONS, str(jetson))
    for part, gpu in {
        "gpu": replace(ORIN, name="Orin NX"),
        "sm": replace(ORIN, sm="8.6"),
        "multiprocessors": replace(ORIN, multiprocessors=16),
        "memory_gib": replace(ORIN, memory_bytes=16_000_000_000),
    }.items():
        yield part, engine_identity(model, "10.3.0", gpu, OPTIONS, str(jetson))
    yield "options", engine_identity(model, "10.3.0", ORIN, dict(OPTIONS, fp32_nodes=("norm",)), str(jetson))
    (jetson / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 5.0, GCID: 1\n")
    yield "l4t", engine_identity(model, "10.3.0", ORIN, OPTIONS, str(jetson))
    (jetson / "etc/nv_tegra_release").write_text(JETSON["etc/nv_tegra_release"])
    (jetson / "proc/device-tree/compatible").write_text("nvidia,p3767-0000\0")
    yield "module", engine_identity(model, "10.3.0", ORIN, OPTIONS, str(jetson))
    (jetson / "proc/device-tree/compatible").write_text(JETSON["proc/device-tree/compatible"])
    model.write_bytes(b"another model")
    yield "onnx_sha256", engine_identity(model, "10.3.0", ORIN, OPTIONS, str(jetson))


def test_any_other_part_is_another_engine_and_a_foreign_one_is_refused_by_that_part(cache, identity, tmp_path, jetson):
    path = cache.keep(identity, b"plan")
    assert open_foreign(path, identity) == b"plan"
    seen = []
    for part, other in other_identities(tmp_path, jetson):
        assert cache.lookup(other) is None, part
        with pytest.raises(TinkitError, match="made elsewhere") as error:
            open_foreign(path, other)
        assert error.value.seen.startswith(part + ": made with "), part
        assert ";" not in error.value.seen, part
        seen.append(part)
    assert len(set(seen)) == 9


def test_an_engine_under_anothers_name_is_not_used(cache, identity, said):
    other = dict(identity, tensorrt="8.6.2")
    path = cache.keep(identity, b"plan")
    for suffix in (".plan", ".json"):
        os.rename(path[:-5] + suffix, cache.path(other)[:-5] + suffix)
    assert cache.lookup(other) is None
    assert "tensorrt: made with '10.3.0', here it is '8.6.2'" in said[0]


def test_an_engine_without_its_record_is_refused(cache, identity, tmp_path):
    (tmp_path / "found.plan").write_bytes(b"plan")
    with pytest.raises(TinkitError, match="missing"):
        open_foreign(tmp_path / "found.plan", identity)
    path = cache.keep(identity, b"plan")
    os.unlink(path[:-5] + ".json")
    assert cache.lookup(identity) is None


@pytest.mark.parametrize(
    ("suffix", "data", "word"),
    [(".plan", b"plam", "damaged"), (".json", b"{", "cannot be read"), (".json", b"[]", "cannot be read")]
    + [(".json", b"{}", "names no identity")],
)
def test_damage_is_not_used_and_told(cache, identity, said, suffix, data, word):
    path = cache.keep(identity, b"plan")[:-5] + suffix
    with open(path, "wb") as handle:
        handle.write(data)
    assert cache.lookup(identity) is None
    assert len(said) == 1
    assert word in said[0]
    cache.keep(identity, b"plan")
    assert cache.lookup(identity) == b"plan"


def test_a_plan_that_is_gone_is_told(cache, identity, said):
    os.unlink(cache.keep(identity, b"plan"))
    assert cache.lookup(identity) is None
    assert "missing" in said[0]


def test_the_folder_and_its_files_are_the_users_alone(tmp_path, identity):
    before = os.umask(0)
    try:
        cache = EngineCache(tmp_path / "cache" / "engines")
        path = cache.keep(identity, b"plan")
    finally:
        os.umask(before)
    assert mode(cache.folder) == 0o700
    assert mode(tmp_path / "cache") == 0o700
    assert mode(path) == 0o600
    assert mode(path[:-5] + ".json") == 0o600
    assert not [name for name in os.listdir(cache.folder) if name.endswith(".partial")]


@pytest.mark.parametrize("suffix", [".plan", ".json"])
def test_a_link_is_refused(cache, identity, said, tmp_path, suffix):
    path = cache.keep(identity, b"plan")[:-5] + suffix
    os.rename(path, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", path)
    assert cache.lookup(identity) is None
    assert "link" in said[0]


@pytest.mark.parametrize("suffix", [".plan", ".json"])
def test_a_file_that_others_can_write_is_refused(cache, identity, said, suffix):
    os.chmod(cache.keep(identity, b"plan")[:-5] + suffix, 0o660)
    assert cache.lookup(identity) is None
    assert "mode 660" in said[0]


def test_a_folder_that_others_can_read_or_that_is_a_link_is_refused(tmp_path):
    folder = tmp_path / "cache" / "engines"
    EngineCache(folder)
    os.chmod(folder, 0o750)  # noqa: S103
    with pytest.raises(TinkitError, match="nobody else") as error:
        EngineCache(folder)
    assert "mode 750" in error.value.seen
    os.chmod(folder, 0o700)
    os.symlink(folder, tmp_path / "cache" / "link")
    with pytest.raises(TinkitError, match="nobody else"):
        EngineCache(tmp_path / "cache" / "link")
    os.chmod(tmp_path / "cache", 0o777)  # noqa: S103
    with pytest.raises(TinkitError, match="nobody else"):
        EngineCache(folder)


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "cache" / "engines"
    EngineCache(folder)
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.raises(TinkitError, match="nobody else") as error:
        EngineCache(folder)
    assert "belongs to user {}, this is user {}".format(me, me + 1) in error.value.seen


def test_a_shared_temporary_folder_is_refused(tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    shared.mkdir()
    os.chmod(shared, 0o1777)  # noqa: S103
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared))
    with pytest.raises(TinkitError, match="nobody else") as error:
        EngineCache()
    assert "shared temporary folder" in error.value.seen


def test_the_default_is_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert EngineCache().folder == str(tmp_path / "xdg" / "tinkit" / "engines")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert EngineCache().folder == str(tmp_path / "home" / ".cache" / "tinkit" / "engines")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(TinkitError, match="no home"):
        EngineCache()


def test_a_place_where_no_folder_can_be_made_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(TinkitError, match="no place to keep engines") as error:
        EngineCache()
    assert "XDG_CACHE_HOME" in error.value.next_step


def test_beyond_the_limit_the_one_not_used_for_longest_goes(tmp_path, identity, said):
    cache = EngineCache(tmp_path / "cache" / "engines", limit_gb=2500 / 1e9, say=said.append)
    first, second, third = (dict(identity, onnx_sha256=name) for name in ("first", "second", "third"))
    for age, entry in ((300, first), (200, second)):
        path = cache.keep(entry, bytes(1000))[:-5] + ".json"
        os.utime(path, (os.stat(path).st_mtime - age,) * 2)
    assert cache.lookup(first) is not None  # used now, so the second is the oldest
    cache.keep(third, bytes(1000))
    assert [cache.lookup(entry) is not None for entry in (first, second, third)] == [True, False, True]
    assert len(said) == 1
    assert cache.path(second) in said[0]
    assert len(os.listdir(cache.folder)) == 4 + 1  # two plans with records, the lock


def test_the_newest_engine_stays_however_large(tmp_path, identity, said):
    cache = EngineCache(tmp_path / "cache" / "engines", limit_gb=10 / 1e9, say=said.append)
    cache.keep(dict(identity, onnx_sha256="old"), bytes(1000))
    cache.keep(identity, bytes(1000))
    assert cache.lookup(identity) == bytes(1000)
    assert cache.lookup(dict(identity, onnx_sha256="old")) is None


def test_what_a_killed_process_left_is_swept(cache, identity):
    left = os.path.join(cache.folder, "engine-abc.plan.1.partial")
    for path, age in ((left, 7200), (left.replace(".1.", ".2."), 60)):
        with open(path, "wb"):
            pass
        os.utime(path, (os.stat(path).st_mtime - age,) * 2)
    cache.keep(identity, b"plan")
    assert not os.path.exists(left)
    assert os.path.exists(left.replace(".1.", ".2."))  # a build that goes on beside this one


def test_a_full_disk_is_told_and_leaves_no_half_engine(cache, identity, full_disk):
    with full_disk(), pytest.raises(TinkitError, match="Could not finish"):
        cache.keep(identity, bytes(100_000))
    assert os.listdir(cache.folder) == [".lock"]
    assert cache.lookup(identity) is None


def test_a_timing_cache_lies_beside_under_its_own_name(cache, identity, jetson):
    timing = timing_identity("10.3.0", ORIN, str(jetson))
    assert os.path.basename(cache.keep(timing, b"tactics")).startswith("timing-")
    assert cache.lookup(timing) == b"tactics"
    assert cache.lookup(timing_identity("10.3.1", ORIN, str(jetson))) is None
    assert cache.lookup(identity) is None


def test_differences_name_parts_that_only_one_side_has():
    assert differences({"a": 1}, {"a": 1}) == []
    assert differences({"a": 1}, {"b": 2}) == ["a: made with 1, here it is None", "b: made with None, here it is 2"]
