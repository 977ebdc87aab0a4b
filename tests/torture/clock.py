#!/usr/bin/env python3
"""G11: clocks that are wrong, jump or run fast, time zones and locales change no bit of a run.

  clock.py LINNET [--rounds N] [--seed S] [--control]

Under libfaketime: 20 years ago, in 20 years, a hundred times as fast, and resumed under another clock than before. A
fake clock must show in env.json, or nothing was tried. --control: the same without the fake, and with another seed.
"""
import glob
import json
import random
import re
import shutil
import time

from runs import VARIANTS, expect, main, parser, same

LIBRARY = sorted(glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1"))
CLOCKS = ["-20y", "+20y", "+0 x100", "-20y x1000", "@2038-01-19 03:14:00 x10", "+1d x0.5"]
PLACES = [{"TZ": "Asia/Kathmandu"}, {"TZ": "America/St_Johns"}, {"TZ": ":/nowhere"}, {"LC_ALL": "C.utf8"},
          {"LC_ALL": "de_DE.utf8", "LANG": "tr_TR.utf8"}, {"LC_ALL": "nonsense"}]


def faked(clock):
    return {"LD_PRELOAD": LIBRARY[-1], "FAKETIME": clock, "FAKETIME_NO_CACHE": "1"}


def year(folder):
    return int(json.loads((folder / "env.json").read_text())["started"][:4])


def straight(lab, name, env, want_year=None):
    folder = lab.fresh()
    lab.finish(folder, name, env=env)
    expect(want_year is None or year(folder) == want_year, f"the clock was not wrong: {year(folder)}")
    same(folder, lab.reference(name))
    shutil.rmtree(folder)
    return {"straight runs": 1}


def stopped(lab, name, env, then):
    """Killed under one clock, finished under another."""
    folder = lab.fresh()
    process = lab.start(*lab.go_on(folder, name), env=env)
    time.sleep(random.uniform(0.1, 0.6) * lab.seconds[name])
    process.kill()
    process.communicate()
    lab.finish(folder, name, env=then)
    same(folder, lab.reference(name))
    shutil.rmtree(folder)
    return {"resumed under another clock": 1}


def other_seed(lab, name):
    folder = lab.fresh()
    assert lab.call("train", lab.config(name), "--out", folder, "--seed", "99").returncode == 0
    same(folder, lab.reference(name))


def experiment(lab):
    names = list(VARIANTS)
    for name in names:
        lab.reference(name)
    now = time.gmtime().tm_year
    if not LIBRARY:
        print("libfaketime is not installed: only time zones and locales are tried")
    for n in range(options.rounds):
        name = names[n % len(names)]
        if lab.control:
            yield f"{n} no fake", lambda name=name: straight(lab, name, {}, now - 20)
            yield f"{n} seed", lambda name=name: other_seed(lab, name)
            continue
        for env in PLACES:
            yield f"{n} {env}", lambda name=name, env=env: straight(lab, name, env)
        for i, clock in enumerate(CLOCKS if LIBRARY else []):
            jump = re.fullmatch(r"([+-]\d+)y.*", clock)
            want = now + int(jump[1]) if jump else None
            then = faked(CLOCKS[i - 1])
            yield f"{n} {clock}", lambda name=name, clock=clock, want=want: straight(lab, name, faked(clock), want)
            yield (f"{n} {clock}, then {CLOCKS[i - 1]}",
                   lambda name=name, clock=clock, then=then: stopped(lab, name, faked(clock), then))


options = parser(__doc__, rounds=8).parse_args()
main(options, experiment)
