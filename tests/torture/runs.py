"""What the experiments on whole runs share: small runs, the runs they must equal, and the count of what held."""
import argparse
import concurrent.futures
import contextlib
import ctypes
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

BASE = """
data.name = "synthetic"
data.samples = 192
data.val = 32
data.image_size = 16
train.batch_size = 16
log.interval = 1
"""
# Together they have every kind of state that a checkpoint must hold. About 300 steps each, but for the convolutions.
VARIANTS = {
    "adamw": """
model.name = "mlp"
model.dropout = 0.2
train.epochs = 30
checkpoint.epochs = 0.3
optimizer.name = "adamw"
optimizer.lr = 0.002
schedule.name = "cosine"
schedule.warmup = 2
ema.decay = 0.9
""",
    "sgd": """
model.name = "linear"
train.epochs = 30
train.patience = 25
checkpoint.epochs = 0.7
checkpoint.every = 5
log.smoothing = 0.9
optimizer.lr = 0.05
optimizer.momentum = 0.9
optimizer.clip_norm = 1
schedule.name = "plateau"
schedule.patience = 2
lookahead.k = 3
""",
    "phases": """
model.name = "mlp"
train.epochs = 30
train.accumulate = 3
checkpoint.epochs = 0.5
augment.mixup = 0.4
log.interval = 2
optimizer.name = "adam"
optimizer.lr = 0.002
[[phase]]
epoch = 11
optimizer.name = "sgd"
optimizer.lr = 0.02
optimizer.momentum = 0.9
""",
    "conv": """
model.name = "convnet"
train.epochs = 6
checkpoint.epochs = 0.3
optimizer.lr = 0.02
optimizer.momentum = 0.9
""",
}
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


class Broken(Exception):
    """What did not hold, in words."""


def expect(holds, what):
    if not holds:
        raise Broken(what)


class Lab:
    """A folder for runs, the program, and the references, each made once."""

    def __init__(self, options):
        self.linnet = str(options.linnet.resolve())
        self.control = options.control
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="linnet-torture-"))
        left_out = ("LINNET_DATA", "LINNET_RUNS", "TZ", "LC_ALL", "LANG")
        self.env = {k: v for k, v in os.environ.items() if k not in left_out}
        self.env |= {"OMP_NUM_THREADS": "1", "CI": "1"}
        self.seconds = {}
        self.count = 0
        for name, text in VARIANTS.items():
            head, mark, phases = text.partition("[[phase]]")
            keys = dict(re.findall(r"(\S+) = (.*)", BASE + head))  # a variant's keys come after those of all
            self.config(name).write_text("".join(f"{k} = {v}\n" for k, v in keys.items()) + mark + phases)

    def config(self, name):
        return self.root / f"{name}.toml"

    def fresh(self):
        """The name of a run folder that does not exist."""
        self.count += 1
        return self.root / f"run{self.count}"

    def start(self, *args, **more):
        env = self.env | more.pop("env", {})
        prepare = more.pop("preexec_fn", lambda: None)

        def preexec():
            for number in SIGNALS:  # nohup and a shell's & ignore some of them, and linnet heeds that
                signal.signal(number, signal.SIG_DFL)
            prepare()

        return subprocess.Popen([self.linnet, *map(str, args)], env=env, preexec_fn=preexec, stdin=subprocess.DEVNULL,
                                **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | more)

    def call(self, *args, **more):
        """Runs it to its end, which must come within a minute."""
        process = self.start(*args, **more)
        try:
            process.out, process.err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Broken(f"{args} does not end")
        return process

    def reference(self, name, *more):
        """The folder of a run that nothing disturbed."""
        folder = self.root / "-".join(["reference", name, *more]).replace("/", "_")
        if not folder.exists():
            begin = time.time()
            run = self.call("train", self.config(name), "--out", folder, *more)
            assert run.returncode == 0, run.err
            self.seconds[name] = time.time() - begin
        return folder

    def go_on(self, folder, name, *more):
        """The command that a person would type next."""
        if (folder / "config.toml").exists():
            return ["resume", folder, *more]
        return ["train", self.config(name), "--out", folder, *more]

    def finish(self, folder, name, **more):
        run = self.call(*self.go_on(folder, name), **more)
        expect(run.returncode == 0, f"it cannot go on: exit {run.returncode}, {run.err[-500:]}")

    def killed_midway(self, name, rows=150):
        """The folder of a run that was killed once it had so many metrics."""
        folder = self.fresh()
        process = self.start("train", self.config(name), "--out", folder, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
        wait_for_rows(process, folder, rows)
        process.kill()
        process.wait()
        return folder


def wait_for_rows(process, folder, rows):
    while count_rows(folder) < rows and process.poll() is None:
        time.sleep(0.001)


def count_rows(folder):
    try:
        return (folder / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def steps_of(folder):
    """The steps of the checkpoints that are there, ascending."""
    if not (folder / "checkpoints").exists():
        return []
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if re.fullmatch(r"\d{8,}", p.name))


def without(value, names):
    if isinstance(value, dict):
        return {k: without(v, names) for k, v in value.items() if k not in names}
    return value


def same(folder, reference, checkpoints=True):
    """Every bit that does not tell the time: the metrics, the weights, the last checkpoint, the summary."""
    for name in ("metrics.jsonl", "model.safetensors", "ema.safetensors", "config.toml"):
        there = (folder / name).exists()
        expect(there == (reference / name).exists(), f"{name} is {'there' if there else 'missing'}")
        if there:
            expect((folder / name).read_bytes() == (reference / name).read_bytes(), f"{name} differs")
    clock = ("wall_s", "timing_bytes")
    got, want = (without(json.loads((f / "summary.json").read_text()), clock) for f in (folder, reference))
    expect(got == want, f"summary.json differs: {got} and {want}")
    got, want = steps_of(folder), steps_of(reference)
    expect(got and got[-1] == want[-1], f"the last checkpoint is {got[-1:]} and not {want[-1:]}")
    if checkpoints:
        expect(got == want, f"the checkpoints are {got} and not {want}")
    got, want = (f / "checkpoints" / f"{want[-1]:08}" for f in (folder, reference))
    for name in ("model.safetensors", "optim.safetensors"):
        expect((got / name).read_bytes() == (want / name).read_bytes(), f"{name} of the last checkpoint differs")
    a, b = (without(json.loads((f / "state.json").read_text()), clock) for f in (got, want))
    expect(a == b, f"state.json of the last checkpoint differs: {a} and {b}")


def parser(doc, **sizes):
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("linnet", type=pathlib.Path)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--control", action="store_true", help="what must be found wrong; passes only if it all is")
    for name, size in sizes.items():
        p.add_argument(f"--{name}", type=int, default=size)
    return p


def main(options, experiment, jobs=2):
    """Runs the cases that experiment(lab) yields as (name, function), `jobs` at once. Exit code 0: all held."""
    random.seed(options.seed)
    lab = Lab(options)
    failures, notes, done = [], {}, 0

    def run(case):
        name, check = case
        try:
            return None, check()
        except (Broken, subprocess.TimeoutExpired) as e:
            return f"{name}: {e}", None

    lock, cases = threading.Lock(), iter(experiment(lab))

    def work():  # a case is asked for when there is someone to run it, not before
        results = []
        while True:
            with lock:
                case = next(cases, None)
            if case is None:
                return results
            results.append(run(case))

    begin = time.time()
    try:
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            for worker in [pool.submit(work) for _ in range(jobs)]:
                for failure, note in worker.result():
                    done += 1
                    failures += [failure] if failure else []
                    for key, n in (note or {}).items():
                        notes[key] = notes.get(key, 0) + n
    finally:
        shutil.rmtree(lab.root, ignore_errors=True)
    for failure in failures[:20]:
        print("  " + failure.strip())
    if notes:
        print(", ".join(f"{n} {key}" for key, n in sorted(notes.items())))
    if options.control:
        print(f"control: {len(failures)} failures found in {done}  ({time.time() - begin:.0f} s)")
        sys.exit(0 if done and len(failures) == done else 1)
    print(f"{done - len(failures)} of {done}  ({time.time() - begin:.0f} s)")
    sys.exit(1 if failures or not done else 0)


def with_mounts():
    """Starts this script again where its mounts are its own and go with it. False: this machine does not allow that."""
    if os.environ.get("LINNET_TORTURE_MOUNTS"):
        return True
    for flags in (["--mount"], ["--mount", "--map-root-user"]):
        enter = ["unshare", *flags, "--propagation", "private"]
        if subprocess.run([*enter, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0:
            os.execvpe(enter[0], [*enter, sys.executable, *sys.argv], os.environ | {"LINNET_TORTURE_MOUNTS": "1"})
    return False


def mount(*args):
    subprocess.run(["mount", *map(str, args)], check=True, capture_output=True)


@contextlib.contextmanager
def tmpfs(folder, size):
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={size}", "none", folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
