#!/usr/bin/env python3
"""N14, its short form: over a run of many epochs, each with a checkpoint, memory, descriptors, threads and files do not grow.

  soak.py LINNET [--epochs N] [--seed S] [--control]

Their largest values in the last third of the run are compared with those in its second third. --control: a process that
loses a descriptor and some memory again and again.
"""
import os
import subprocess
import sys
import time

from runs import Broken, count_rows, expect, main, parser

# What may be more: saves under way are met by chance. Memory in KiB.
SLACK = {"memory": 2048, "descriptors": 3, "threads": 1, "files": 3}
LEAK = "import time\nkept = []\nwhile True:\n  kept.append((open('/dev/null'), bytes(65536)))\n  time.sleep(0.005)"


def sample(pid, folder):
    status = dict(line.split(":\t") for line in open(f"/proc/{pid}/status").read().split("\n") if ":\t" in line)
    return {"memory": int(status["VmRSS"].split()[0]), "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
            "threads": int(status["Threads"]), "files": sum(len(files) for _, _, files in os.walk(folder))}


def watch(process, folder, done):
    """The largest values in the second and in the last third; done() is the share that is done."""
    most = [{}, {}, {}]
    while process.poll() is None and (share := done()) < 1:
        try:
            values = sample(process.pid, folder)
        except (FileNotFoundError, KeyError, ProcessLookupError):  # it has just ended
            break
        third = most[int(3 * share)]
        for key, value in values.items():
            third[key] = max(third.get(key, 0), value)
        time.sleep(0.005)
    return most[1:]


def flat(lab):
    folder = lab.fresh()
    if lab.control:
        begin = time.time()
        process = subprocess.Popen([sys.executable, "-c", LEAK])
        before, after = watch(process, folder, lambda: (time.time() - begin) / 3)
        process.kill()
        process.wait()
    else:
        process = lab.start("train", lab.config("adamw"), "--out", folder, "--epochs", options.epochs, "--set",
                            "log.tensorboard=false", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        rows = options.epochs * 11  # one a step and one an epoch
        before, after = watch(process, folder, lambda: count_rows(folder) / rows)
        expect(process.wait() == 0, f"exit {process.returncode}")
    expect(before and after, "it was over too soon")
    grown = [f"{key} {before[key]} -> {after[key]}" for key in SLACK if not after[key] <= before[key] + SLACK[key]]
    if grown:
        raise Broken("it grows: " + ", ".join(grown))
    return {f"run of {options.epochs} epochs, at most {after}": 1}


def experiment(lab):
    yield "soak", lambda: flat(lab)


if os.path.isdir("/dev/shm"):
    os.environ["TMPDIR"] = "/dev/shm"
options = parser(__doc__, epochs=3000).parse_args()
main(options, experiment, jobs=1)
