#!/usr/bin/env python3
"""D1, D2, D3: the same run again, on any number of threads, stopped at any step: the same bits.

  determinism.py LINNET [--runs N] [--every K] [--seed S] [--control]

D1: N runs. D2: OMP_NUM_THREADS from 1 to 64. D3: resumed from every K-th step of a run, each time with another number
of threads; every step saves, and all checkpoints but the one in question are taken away. --control: another seed, and
a run that goes on from the weights of a step alone.
"""
import random
import re
import shutil

from runs import VARIANTS, expect, main, parser, same, steps_of

THREADS = [1, 2, 3, 4, 7, 16, 64]


def again(lab, name, threads, more=()):
    folder = lab.fresh()
    run = lab.call(*lab.go_on(folder, name, *more), env={"OMP_NUM_THREADS": str(threads)})
    expect(run.returncode == 0, f"exit {run.returncode}, {run.err[-300:]}")
    same(folder, lab.reference(name))
    shutil.rmtree(folder)
    return {f"runs on {threads} threads": 1}


KEEP_ALL = ("--set", "checkpoint.epochs=1e-6", "--set", "checkpoint.keep=10000")


def resumed(lab, name, step):
    """From the checkpoint of this step, the only one that is left; then saving as the config says."""
    every, folder = re.search(r"checkpoint.epochs = (\S+)", VARIANTS[name])[1], lab.fresh()
    shutil.copytree(lab.reference(name, *KEEP_ALL), folder,
                    ignore=lambda at, names: [n for n in names if n.isdigit() and int(n) != step])
    for file in folder.glob("*.safetensors"):
        file.unlink()
    run = lab.call("resume", folder, "--set", f"checkpoint.epochs={every}", "--set", "checkpoint.keep=3",
                   env={"OMP_NUM_THREADS": str(random.choice(THREADS))})
    expect(run.returncode == 0, f"exit {run.returncode}, {run.err[-300:]}")
    same(folder, lab.reference(name), checkpoints=False)  # the numbers of the saves differ
    shutil.rmtree(folder)
    return {"steps resumed from": 1}


def forked(lab, name, step):
    reference, folder = lab.reference(name, *KEEP_ALL), lab.fresh()
    weights = reference / "checkpoints" / f"{step:08}" / "model.safetensors"
    assert lab.call("fork", weights, lab.config(name), "--out", folder, *KEEP_ALL).returncode == 0
    same(folder, reference)


def experiment(lab):
    for name in VARIANTS:
        lab.reference(name)
        steps = steps_of(lab.reference(name, *KEEP_ALL))
        if lab.control:
            yield f"seed {name}", lambda name=name: again(lab, name, 1, ("--seed", "99"))
            yield f"fork {name}", lambda name=name, step=steps[len(steps) // 2]: forked(lab, name, step)
            continue
        for n in range(options.runs):
            yield f"D1 {name}", lambda name=name: again(lab, name, 2)
        for threads in THREADS:
            yield f"D2 {name} {threads}", lambda name=name, threads=threads: again(lab, name, threads)
        for step in steps[:-1:options.every]:  # behind the last one nothing is saved again
            yield f"D3 {name} from {step}", lambda name=name, step=step: resumed(lab, name, step)


options = parser(__doc__, runs=20, every=5).parse_args()
main(options, experiment)
