#!/usr/bin/env python3
"""G9: SIGINT, SIGTERM and SIGHUP at random instants of a run, once and twice.

  signals.py LINNET [--signals N] [--seed S] [--control]

Once: within 5 s it has saved the step that it names and ends with 130, 143 or 129 (or the signal came before there was
a run, or after its end). Twice: the second one ends it within 0.1 s. After either, the run goes on to the very bits of
one that was not disturbed. --control: SIGKILL in place of the first, and a process that ignores both.
The runs lie in memory where they can: an fsync under way is ended by the kernel first, and a slow disk takes its time.
One of the runs spends its time in large matrix products: on AVX2 machines those of oneDNN use the stack pointer for
other things, and a handler that ran on such a thread ended the process.
"""
import os
import random
import re
import shutil
import signal
import subprocess
import time

from runs import SIGNALS, VARIANTS, count_rows, expect, main, parser, same, steps_of


def once(lab, name, number):
    reference, folder = lab.reference(name), lab.fresh()
    process = lab.start(*lab.go_on(folder, name), stdout=subprocess.DEVNULL)
    time.sleep(random.uniform(0, 1.1 * lab.seconds[name]))
    began = count_rows(folder) > 0
    sent = time.time()
    process.send_signal(number)
    error = process.communicate()[1]
    expect(time.time() - sent < 5, f"it took {time.time() - sent:.1f} s")
    note = "stopped"
    if process.returncode == 0:
        note = "came after the end"
    elif process.returncode == -number and not began and not lab.control:
        note = "came before the first step"
    else:
        expect(process.returncode == SIGNALS.get(number), f"exit {process.returncode}, {error[-300:]}")
        said = re.search(r"stopped by signal (\d+) after step (\d+)", error)
        expect(said and int(said[1]) == number and int(said[2]) == steps_of(folder)[-1],
               f"the checkpoints are {steps_of(folder)}, and it says {error[-300:]}")
    lab.finish(folder, name)
    same(folder, reference, checkpoints=False)  # that of the stop is one more
    shutil.rmtree(folder)
    return {note: 1}


def twice(lab, name, number):
    reference, folder = lab.reference(name), lab.fresh()
    ignore = (lambda: signal.signal(number, signal.SIG_IGN)) if lab.control else (lambda: None)
    process = lab.start(*lab.go_on(folder, name), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                        preexec_fn=ignore)
    time.sleep(random.uniform(0, 0.5 * lab.seconds[name]) if not lab.control else 0)
    process.send_signal(number)
    time.sleep(random.uniform(0, 0.02))
    process.send_signal(number)
    sent = time.time()
    process.wait()
    took = time.time() - sent
    expect(took < 0.1, f"it took {took:.2f} s to end")
    expect(process.returncode in (0, -number, SIGNALS[number]), f"exit {process.returncode}")
    lab.finish(folder, name)
    same(folder, reference, checkpoints=False)
    shutil.rmtree(folder)
    return {"ended at once": 1}


PRODUCTS = """
data.name = "synthetic"
data.samples = 588
data.val = 76
data.image_size = 48
model.name = "mlp"
train.batch_size = 256
train.epochs = 10
checkpoint.epochs = 2
optimizer.lr = 0.002
optimizer.momentum = 0.9
log.interval = 1
"""


def experiment(lab):
    lab.config("products").write_text(PRODUCTS)
    names = [*VARIANTS, "products"]
    for name in names:
        lab.reference(name)
    for n in range(options.signals):
        name, number = names[n % len(names)], list(SIGNALS)[n % len(SIGNALS)]
        if lab.control and n % 2 == 0:
            yield f"{n} SIGKILL", lambda name=name: once(lab, name, signal.SIGKILL)
        elif n % 2 == 0:
            yield f"{n} {number!r}", lambda name=name, number=number: once(lab, name, number)
        else:
            name = "conv" if lab.control else name  # the longest: it would not end at once by itself
            yield f"{n} {number!r} twice", lambda name=name, number=number: twice(lab, name, number)


if os.path.isdir("/dev/shm"):
    os.environ["TMPDIR"] = "/dev/shm"
options = parser(__doc__, signals=200).parse_args()
main(options, experiment)
