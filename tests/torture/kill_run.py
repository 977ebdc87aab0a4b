#!/usr/bin/env python3
"""G1: `linnet train`, then `linnet resume` again and again, each killed by SIGKILL at a random instant, until one comes
through. Metrics, weights and the last checkpoint must be those of a run that was never killed.

  kill_run.py LINNET [--kills N] [--seed S] [--control]

Half of the instants are uniform over the first 0.05 s, the start; half over a third of the time that the
run takes. --control: a run that is killed once and goes on from its newest checkpoint's weights alone (`linnet
fork`), and a run whose weights have one bit flipped at the end.
"""
import random
import shutil
import subprocess
import threading
import time

from runs import VARIANTS, expect, main, parser, same, steps_of


def chain(lab, name, budget):
    """One run, killed until it comes through. Returns where the kills fell."""
    reference, folder = lab.reference(name), lab.fresh()
    notes = {}
    while True:
        process = lab.start(*lab.go_on(folder, name), stdout=subprocess.DEVNULL)
        if budget.left > 0:
            time.sleep(random.uniform(0, random.choice([0.05, 0.35 * lab.seconds[name]])))
            process.kill()
        error = process.communicate()[1]
        if process.returncode == 0:
            same(folder, reference)
            shutil.rmtree(folder)
            return notes | {"runs": 1}
        expect(process.returncode == -9, f"it cannot go on: exit {process.returncode}, {error[-500:]}")
        budget.use()
        place = ("before there was a run" if not (folder / "config.toml").exists() else
                 "before the first checkpoint" if not steps_of(folder) else
                 "after the last step" if (folder / "model.safetensors").exists() else "in between")
        notes[f"kills {place}"] = notes.get(f"kills {place}", 0) + 1


class Budget:
    """Kills that are left, for all threads."""

    def __init__(self, kills):
        self.left, self.lock = kills, threading.Lock()

    def use(self):
        with self.lock:
            self.left -= 1


def forked(lab, name):
    folder, new = lab.killed_midway(name, rows=60), lab.fresh()
    newest = folder / "checkpoints" / f"{steps_of(folder)[-1]:08}" / "model.safetensors"
    assert lab.call("fork", newest, lab.config(name), "--out", new).returncode == 0
    same(new, lab.reference(name))


def flipped(lab, name):
    folder = lab.fresh()
    shutil.copytree(lab.reference(name), folder)
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    same(folder, lab.reference(name))


def experiment(lab):
    names = list(VARIANTS)
    for name in names:
        lab.reference(name)
    if lab.control:
        for name in names:
            yield f"fork {name}", lambda name=name: forked(lab, name)
            yield f"flip {name}", lambda name=name: flipped(lab, name)
        return
    budget, n = Budget(options.kills), 0
    while budget.left > 0:
        name = names[n % len(names)]
        n += 1
        yield f"run {n}, {name}", lambda name=name: chain(lab, name, budget)


options = parser(__doc__, kills=1000).parse_args()
main(options, experiment)
