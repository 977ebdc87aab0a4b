#!/usr/bin/env python3
"""N1, N2: a run that diverges stops before the bad update; its checkpoints are finite; resume replays the very step.

  nonfinite.py LINNET [--rounds N] [--seed S] [--control]

Learning rates that overflow, at once or after some steps, with several optimizers and policies. --control: learning
rates that do not.
"""
import json
import math
import random
import shutil
import struct

from runs import expect, main, parser, steps_of

OPTIMIZERS = ["sgd", "adamw", "nag", "muon"]  # sgdw, lion, rmsprop: not with every seed
POLICIES = {"stop": [], "skip": ["--set", "train.max_skips=3"], "rewind": ["--set", "train.max_skips=2"]}


def finite(file):
    data = file.read_bytes()
    start = 8 + struct.unpack_from("<Q", data)[0]
    for (value,) in struct.iter_unpack("<f", data[start:]):
        if not math.isfinite(value):
            return False
    return True


def diverges(lab, optimizer, policy, lr, seed):
    folder = lab.fresh()
    args = ["--set", f"optimizer.name={optimizer}", "--set", f"optimizer.lr={lr}",
            "--set", f"train.on_nonfinite={policy}", *POLICIES[policy]]
    run = lab.call("train", lab.config("blowup"), "--out", folder, "--seed", seed, *args)
    for step in steps_of(folder):
        for name in ("model", "optim"):
            file = folder / "checkpoints" / f"{step:08}" / f"{name}.safetensors"
            expect(finite(file), f"{name} of step {step} is not finite")
    if run.returncode == 0 and policy != "stop":  # that is what they are for
        state = json.loads((folder / "checkpoints" / f"{steps_of(folder)[-1]:08}" / "state.json").read_text())
        expect(state["progress"]["rewinds" if policy == "rewind" else "result.skipped"] > 0, "it did not diverge")
        return {f"{policy}, saved": 1}
    expect(run.returncode == 5, f"exit {run.returncode}, {run.err[-300:]}")
    expect(json.loads((folder / "summary.json").read_text())["status"] == "diverged", "the summary says otherwise")
    expect(not (folder / "model.safetensors").exists(), "it has saved weights")
    if not (folder / "nonfinite.json").exists():  # finite gradients, and an update that left the range of floats
        again = lab.call("resume", folder)
        expect(again.returncode == 5 and "is not saved" in run.err and "is not saved" in again.err, again.err[-300:])
        return {"found in what was to be saved": 1}
    bad, metrics = (folder / "nonfinite.json").read_bytes(), (folder / "metrics.jsonl").read_bytes()
    kept = {f: f.read_bytes() for f in (folder / "checkpoints").rglob("*.safetensors")}
    (folder / "nonfinite.json").unlink()
    again = lab.call("resume", folder)
    expect(again.returncode == 5, f"replay: exit {again.returncode}, {again.err[-300:]}")
    expect((folder / "nonfinite.json").read_bytes() == bad, "the replay found something else")
    expect((folder / "metrics.jsonl").read_bytes() == metrics, "the replay has other metrics")
    expect(all(f.read_bytes() == data for f, data in kept.items() if f.exists()), "a checkpoint has changed")
    shutil.rmtree(folder)
    return {f"{policy}, replayed": 1}


def experiment(lab):
    lab.config("blowup").write_text(lab.config("conv").read_text().replace('"convnet"', '"convnet_nobn"')
                                    .replace("optimizer.momentum = 0.9\n", "").replace("optimizer.lr = 0.02\n", "")
                                    + "checkpoint.keep = 100\n")
    for n in range(options.rounds):
        optimizer, policy = OPTIMIZERS[n % len(OPTIMIZERS)], list(POLICIES)[n // len(OPTIMIZERS) % 3]
        milder = optimizer == "sgd" and policy == "rewind"  # so that going back does help for a while
        lr = 1e-4 if lab.control else 50 if milder else random.choice([8000, 10000])
        yield (f"{optimizer} {policy} lr {lr}",
               lambda o=optimizer, p=policy, lr=lr, n=n: diverges(lab, o, p, lr, n))


options = parser(__doc__, rounds=36).parse_args()
main(options, experiment)
