#!/usr/bin/env python3
"""G12: a run folder that was copied, moved, linked, packed or given other times resumes to the same bits.

  folder.py LINNET [--rounds N] [--seed S] [--control]

--control: the same of a run with another seed, which must not become equal.
"""
import os
import random
import re
import shutil
import subprocess

from runs import VARIANTS, expect, main, parser, same


def copied(lab, folder, new):
    subprocess.run(["cp", "-r", folder, new], check=True)
    shutil.rmtree(folder)


def moved(lab, folder, new):
    folder.rename(new)


def packed(lab, folder, new):
    new.mkdir()
    subprocess.run(["tar", "-C", folder, "-cf", f"{new}.tar", "."], check=True)
    subprocess.run(["tar", "-C", new, "-xf", f"{new}.tar", "--touch"], check=True)
    shutil.rmtree(folder)


def linked(lab, folder, new):
    new.symlink_to(folder.name)


def moved_checkpoints(lab, folder, new):
    moved(lab, folder, new)
    (new / "checkpoints").rename(f"{new}-elsewhere")
    (new / "checkpoints").symlink_to(f"{new}-elsewhere")


def touched(lab, folder, new):
    moved(lab, folder, new)
    for path in [new, *new.rglob("*")]:
        t = random.uniform(0, 4e9)
        os.utime(path, (t, t))


def deep(lab, folder, new):
    folder.rename(lab.root / f"{new.name} with a space, 'quotes' and \N{SNOWMAN}")
    return lab.root / f"{new.name} with a space, 'quotes' and \N{SNOWMAN}"


def slashed(lab, folder, new):
    moved(lab, folder, new)
    return f"{new}//"


WAYS = [copied, moved, packed, linked, touched, deep, slashed, moved_checkpoints]


def try_way(lab, name, way):
    folder, new = lab.killed_midway(name, rows=random.randrange(20, 100)), lab.fresh()
    if lab.control:
        config = folder / "config.toml"
        config.write_text(re.sub(r"\bseed = \d+", "seed = 99", config.read_text()))
    place = way(lab, folder, new) or new
    run = lab.call("resume", place)
    expect(run.returncode == 0, f"exit {run.returncode}, {run.err[-500:]}")
    same(lab.root / str(place).rstrip("/"), lab.reference(name))
    return {way.__name__: 1}


def experiment(lab):
    for name in VARIANTS:
        lab.reference(name)
    for n in range(options.rounds):
        for i, way in enumerate(WAYS):
            name = list(VARIANTS)[(n + i) % len(VARIANTS)]
            yield f"{way.__name__} {name}", lambda name=name, way=way: try_way(lab, name, way)


options = parser(__doc__, rounds=8).parse_args()
main(options, experiment)
