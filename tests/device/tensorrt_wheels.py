"""What the Python bindings of seven TensorRT versions really have, without TensorRT and without a GPU.

The bindings are small wheels of their own; the native libraries behind them are replaced by empty ones with the few
symbols that are asked for (needs gcc, nm and readelf). That is enough to import them and to look at every class and
enum. `python tests/device/tensorrt_wheels.py` writes tests/data/tensorrt-bindings.json anew; the slow test in
test_tensorrt_bindings.py compares it with the wheels, and recording_tensorrt.py pretends to be them.
"""

import datetime
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

DATA = Path(__file__).parents[1] / "data" / "tensorrt-bindings.json"
WHEELS = {  # version, as the module calls itself -> requirement
    "8.6.1": "tensorrt-bindings==8.6.1",
    "10.3.0": "tensorrt-cu12-bindings==10.3.0",
    "10.8.0.43": "tensorrt-cu12-bindings==10.8.0.43",
    "10.13.3.9": "tensorrt-cu13-bindings==10.13.3.9",
    "10.16.1.11": "tensorrt-cu13-bindings==10.16.1.11",
    "11.0.0.114": "tensorrt-cu13-bindings==11.0.0.114",
    "11.4.0.106": "tensorrt-cu13-bindings==11.4.0.106",
}
CLASSES = [
    "Builder",
    "IBuilderConfig",
    "INetworkDefinition",
    "ILayer",
    "ITensor",
    "IOptimizationProfile",
    "ITimingCache",
    "IHostMemory",
    "OnnxParser",
    "ParserError",
    "ILogger",
    "IProgressMonitor",
    "IProfiler",
    "Runtime",
    "ICudaEngine",
    "IExecutionContext",
    "EngineInspector",
    "IRuntimeConfig",
    "ISerializationConfig",
    "Dims",
]
ENUMS = [
    "BuilderFlag",
    "DataType",
    "ErrorCode",
    "ExecutionContextAllocationStrategy",
    "HardwareCompatibilityLevel",
    "ILogger.Severity",
    "LayerInformationFormat",
    "LayerType",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParserFlag",
    "PreviewFeature",
    "ProfilingVerbosity",
    "TensorFormat",
    "TensorIOMode",
    "TensorLocation",
]


def fetch(version, folder):
    """Download and unpack the bindings of a version into a folder. Returns (where the module is, the wheel's facts).

    Raises FileNotFoundError with pip's words where there is no wheel for this Python or no package index.
    """
    folder = Path(folder) / version
    wheel = folder / "wheel"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "-d", wheel, WHEELS[version]], capture_output=True, text=True, check=False)
    if done.returncode:
        raise FileNotFoundError(f"{WHEELS[version]}: {done.stderr.strip().splitlines()[-1]}")
    (path,) = wheel.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "site")
    facts = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    _empty_libraries(folder / "site" / "tensorrt_bindings" / "tensorrt.so", folder / "stub")
    return folder, facts


def _empty_libraries(module, folder):
    """A library for each of NVIDIA's that the module needs, with its undefined symbols as functions that return 0."""
    folder.mkdir()
    undefined = _run("nm", "-D", "--undefined-only", module).split()[1::2]
    names = [name for name in undefined if not re.search(r"@|^_?Py|^dl(open|sym|close)$|^pthread", name)]
    source = folder / "stub.c"
    lines = [f'void* s{i}(void) __asm__("{name}"); void* s{i}(void) {{ return 0; }}' for i, name in enumerate(names)]
    source.write_text("\n".join(lines))
    for library in re.findall(r"NEEDED.*\[(libnv[^]]*)\]", _run("readelf", "-d", module)):
        _run("gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", folder / library, source)


def _run(*command):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout


def members_of(folder):
    """What `describe` says of the bindings in a folder of `fetch`, asked in a process of its own."""
    environment = dict(os.environ, LD_LIBRARY_PATH=str(folder / "stub"), PYTHONPATH=str(folder / "site"))
    done = subprocess.run(
        [sys.executable, __file__, "describe"], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def describe(trt):
    """{"version", "classes": {name: [members]}, "enums": {name: {member: value}}} of a TensorRT module.

    A member is written `name(argument, optional=)` for a method with one signature, `name(...)` for other methods,
    `name =` for an attribute that can be set and `name` for one that cannot. What the version lacks is left out.
    """
    return {
        "version": trt.__version__,
        "classes": {name: _members(getattr(trt, name)) for name in CLASSES if hasattr(trt, name)},
        "enums": {
            name: {key: int(value) for key, value in kind.__members__.items()}
            for name in ENUMS
            if (kind := _inner(trt, name)) is not None
        },
    }


def _inner(trt, dotted):
    for name in dotted.split("."):
        trt = getattr(trt, name, None)
    return trt


def _members(cls):
    """Sorted; without nested classes, enum values, and the network's add_*: a network comes from the parser only."""
    names = [name for name in dir(cls) if not name.startswith(("_", "add_")) or name == "add_optimization_profile"]
    names = [name for name in sorted(names) if not isinstance(getattr(cls, name), type)]
    constructor = ["__init__"] if "-> None" in (cls.__init__.__doc__ or "") else []
    return [_written(cls, name) for name in constructor + names]


def _written(cls, name):
    member = getattr(cls, name)
    if isinstance(member, property):
        return name + (" =" if member.fset else "")
    if not callable(member):
        return name
    signature = re.match(rf"{name}\((.*)\) -> ", member.__doc__ or "")
    if not signature or "*args" in signature[1]:
        return f"{name}(...)"
    arguments = re.findall(r"(?:^|, )(\w+)(?:: [^=]*?)?( = [^,]+)?(?=, \w+(?::| =|$)|$)", signature[1])
    return f"{name}({', '.join(word + ('=' if default else '') for word, default in arguments if word != 'self')})"


def write(path=DATA):
    """Fetch every version and write the JSON, one class a line."""
    value = {"born": {"by": "tests/device/tensorrt_wheels.py", "python": platform.python_version(), "wheels": {}}}
    value["born"]["on"] = datetime.date.today().isoformat()
    value["versions"] = {}
    with tempfile.TemporaryDirectory() as folder:
        for version in WHEELS:
            place, value["born"]["wheels"][version] = fetch(version, folder)
            value["versions"][version] = members_of(place)
    text = json.dumps(value, indent=1)
    text = re.sub(r"\n {5,}(?=\S)", " ", text).replace("[ ", "[").replace("{ ", "{")
    text = re.sub(r"\n {4}([\]}])", r"\1", text)
    path.write_text(text + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["describe"]:
        import tensorrt_bindings

        print(json.dumps(describe(tensorrt_bindings)))
    else:
        write()
