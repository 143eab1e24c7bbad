"""A trtexec for tests: refuses what its version does not know, understands the rest with that version's defaults, and
plays recorded times back. trtexec.json beside it says {"version", "times", "behave"}; every call is added to calls.json.
"""

import json
import os
import signal
import statistics
import sys
import time

BESIDE = os.path.dirname(os.path.abspath(__file__))
VALUED = (
    "onnx saveEngine loadEngine minShapes optShapes maxShapes shapes memPoolSize timingCacheFile avgTiming sparsity "
    "useDLACore inputIOFormats outputIOFormats tacticSources profilingVerbosity iterations duration warmUp sleepTime "
    "idleTime device streams percentile avgRuns exportTimes exportProfile exportLayerInfo exportOutput loadInputs plugins"
)
BARE = (
    "noTF32 allowGPUFallback dumpProfile dumpLayerInfo dumpOutput separateProfileRun useSpinWait useCudaGraph "
    "noDataTransfers exposeDMA useManagedMemory threads verbose help"
)
VALUED_SINCE_8_6 = (
    "builderOptimizationLevel hardwareCompatibilityLevel infStreams maxAuxStreams staticPlugins useRuntime"
)
WEAK = "fp16 int8 best"
ONLY_8 = "explicitBatch"
VALUED_ONLY_8 = "workspace minTiming maxBatch"
SINCE_10 = "stronglyTyped stripWeights noCompilationCache errorOnTimingCacheMiss getPlanVersionOnly"
SINCE_11 = "includeDataTransfers noCudaGraph noSpinWait"


def options_of(version):
    valued, bare = VALUED.split(), BARE.split()
    if version >= (8, 6):
        valued, bare = valued + VALUED_SINCE_8_6.split(), [*bare, "skipInference", "versionCompatible"]
    if version < (11,):
        valued, bare = [*valued, "calib", "layerPrecisions", "precisionConstraints"], bare + WEAK.split()
    if version < (9,):
        valued, bare = valued + VALUED_ONLY_8.split(), bare + ONLY_8.split()
    if version >= (10,):
        bare += SINCE_10.split()
    if version >= (11,):
        bare += SINCE_11.split()
    return set(valued), set(bare)


class Trtexec:
    def __init__(self, words):
        with open(os.path.join(BESIDE, "trtexec.json")) as handle:
            self.config = json.load(handle)
        self.version = tuple(int(part) for part in self.config["version"].split("."))
        self.behave, self.words, self.given = self.config.get("behave", "pass"), words, {}

    def say(self, text, level="I"):
        print("[11/21/2026-12:00:00] [{}] {}".format(level, text))

    def banner(self, word):
        major, minor, patch = self.version
        number = "v{}{:02}{:02}".format(*self.version) if major >= 10 else "v{}{}{:02}".format(major, minor, patch)
        words = " ".join(["trtexec", *self.words])
        print("&&&& {} TensorRT.trtexec [TensorRT {}] # {}".format(word, number, words), flush=True)

    def fail(self, text, level="E"):
        self.say(text, level)
        self.banner("FAILED")
        sys.exit(1)

    def main(self):
        with open(os.path.join(BESIDE, "calls.json"), "a") as handle:
            handle.write(json.dumps(self.words) + "\n")
        if self.behave == "mute":
            sys.exit(0)
        self.banner("RUNNING")
        self.parse()
        if "help" in self.given:
            print("=== Model Options ===")
            return
        self.check()
        self.settings()
        if self.behave == "hang":
            time.sleep(600)
        if self.behave == "killed":
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.behave == "fail":
            self.say("Builder creation failed", "E")
            self.fail("Engine set up failed")
        self.run()

    def parse(self):
        valued, bare = options_of(self.version)
        for word in self.words:
            name, equals, value = word.partition("=")
            known = valued if equals else bare
            if not name.startswith("--") or name[2:] not in known or (equals and not value):
                print(" [E] Unknown option: {} {}".format(name, value))
                self.banner("FAILED")
                sys.exit(1)
            if name[2:] in self.given:
                self.fail("given twice: " + name)
            self.given[name[2:]] = value

    def check(self):
        given = self.given
        model = given.get("onnx", given.get("loadEngine"))
        if model is None or ("onnx" in given and "loadEngine" in given):
            self.fail("Model missing or format not recognized")
        if not os.path.isfile(model):
            self.fail("Could not open file " + model)
        build = [name for name in ("minShapes", "optShapes", "maxShapes") if name in given]
        if build and len(build) != 3:
            self.fail("Must specify only --optShapes or all of --minShapes, --optShapes, --maxShapes")
        sizes = [int(given[name].split(":")[-1].split("x")[0]) for name in (*build, "shapes") if name in given]
        if build and not sizes[0] <= sizes[3] <= sizes[2]:
            self.fail("Static dimension mismatch while setting input shape.")

    def settings(self):
        given, new = self.given, self.version >= (11,)
        graph = "noCudaGraph" not in given if new else "useCudaGraph" in given
        spin = "noSpinWait" not in given if new else "useSpinWait" in given
        transfers = "includeDataTransfers" in given if new else "noDataTransfers" not in given
        if self.behave == "graph-off":
            graph = False
        enabled = {True: "Enabled", False: "Disabled"}
        self.say("=== Inference Options ===")
        self.say("ExposeDMA: " + enabled["exposeDMA" in given])
        self.say("Data transfers: " + enabled[transfers])
        self.say("Spin-wait: " + enabled[spin])
        self.say("CUDA Graph: " + enabled[graph])
        self.say("Selected Device: Orin")
        self.say("TensorRT version: {}.{}.{}".format(*self.version))

    def run(self):
        with open(self.config["times"]) as handle:
            text = handle.read()
        rows = json.loads(text)
        compute = sorted(row["computeMs"] for row in rows)
        median = statistics.median(compute)
        self.say("Timing trace has {} queries over 3.0 s".format(len(rows)))
        self.say("=== Performance summary ===")
        self.say("Throughput: {:g} qps".format(len(rows) / 3.0))
        told = "GPU Compute Time: min = {:g} ms, max = {:g} ms, mean = {:g} ms, median = {:g} ms, percentile(99%) = {:g} ms"
        shown = median * (1.5 if self.behave == "other-median" else 1)
        self.say(told.format(compute[0], compute[-1], statistics.mean(compute), shown, compute[-1]))
        if self.behave == "unstable":
            self.say("* GPU compute time is unstable, with coefficient of variance = 44.3558%.", "W")
        if self.behave != "no-times":
            with open(self.given["exportTimes"], "w") as handle:
                handle.write({"junk-times": '[\n { "computeMs" : "much" }\n'}.get(self.behave, text))
        if "exportProfile" in self.given:
            with open(self.given["exportProfile"], "w") as handle:
                json.dump([{"count": 2}, {"name": "conv", "averageMs": 0.5, "medianMs": 0.4, "percentage": 80}], handle)
        if self.behave != "no-verdict":
            self.banner("PASSED")


if __name__ == "__main__":
    Trtexec(sys.argv[1:]).main()
