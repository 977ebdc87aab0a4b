#!/usr/bin/env python3
"""N7: a file of the data set that is damaged or exchanged while a run is stopped or goes on is found: exit 3, with
its name or what was expected.

  data_change.py LINNET [--changes N] [--seed S] [--control]

A made-up CIFAR-10 of random pixels. Put right again, the run goes on to the bits of one that was not disturbed.
--control: changes that are none (the same bytes written again), which must not be found.
"""
import os
import random
import shutil
import subprocess
import time

from runs import count_rows, expect, main, parser, same, wait_for_rows

RECORD, FILES = 3073, [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]


def make_cifar(folder):
    folder.mkdir()
    for name in FILES:
        data = bytearray(random.randbytes(10000 * RECORD))
        data[::RECORD] = bytes(i % 10 for i in range(10000))
        (folder / name).write_bytes(data)


def flip(path):
    size = path.stat().st_size
    with open(path, "r+b") as file:
        at = random.randrange(size)
        at += at % RECORD == 0  # a label may change to a wrong number: that is another message
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << random.randrange(8)]))


def truncate(path):
    os.truncate(path, random.randrange(path.stat().st_size))


def extend(path):
    with open(path, "ab") as file:
        file.write(b"x" * random.randrange(1, RECORD + 1))


def bad_label(path):
    with open(path, "r+b") as file:
        file.seek(random.randrange(10000) * RECORD)
        file.write(b"\x0a")


def exchange(path):
    path.write_bytes(path.with_name(FILES[(FILES.index(path.name) + 1) % 6]).read_bytes())


def remove(path):
    path.unlink()


def nothing(path):
    path.write_bytes(path.read_bytes())


CHANGES = [flip, flip, truncate, extend, bad_label, exchange, remove]


def stopped(lab, change, name):
    """Changed between the stop and the resume."""
    folder = lab.fresh()
    process = lab.start(*lab.go_on(folder, "cifar"))
    wait_for_rows(process, folder, random.randrange(2, 10))
    process.terminate()
    process.communicate()
    return tried(lab, change, name, folder, lambda: lab.call("resume", folder))


def running(lab, change):
    """The test images, changed while it trains, are read again at its end."""
    folder = lab.fresh()
    process = lab.start(*lab.go_on(folder, "cifar"))
    wait_for_rows(process, folder, 2)

    def end():
        process.out, process.err = process.communicate(timeout=60)
        return process

    return tried(lab, change, "test_batch.bin", folder, end)


def tried(lab, change, name, folder, run):
    path = lab.root / "cifar" / name
    kept = path.with_name("kept")
    shutil.copy(path, kept)
    change(path)
    process = run()
    kept.rename(path)
    expect(process.returncode == 3, f"exit {process.returncode}, {process.err[-400:]}")
    expect(name in process.err or "images" in process.err, f"it does not say what: {process.err[-400:]}")
    lab.finish(folder, "cifar")
    same(folder, lab.reference("cifar"), checkpoints=False)
    shutil.rmtree(folder)
    return {f"{change.__name__} in {name}": 1}


def experiment(lab):
    make_cifar(lab.root / "cifar")
    lab.config("cifar").write_text(f"""
data.name = "cifar10"
data.path = "{lab.root / 'cifar'}"
data.val = 5000
data.drop_last = false
model.name = "linear"
train.batch_size = 3000
train.epochs = 2
checkpoint.epochs = 0.2
log.interval = 1
optimizer.lr = 0.001
augment.crop_pad = 0
augment.flip = "none"
""")
    lab.reference("cifar")
    for n in range(options.changes):
        change = nothing if lab.control else CHANGES[n % len(CHANGES)]
        name = random.choice(FILES)
        yield f"{change.__name__} {name}, stopped", lambda change=change, name=name: stopped(lab, change, name)
        if n % 2 == 0:
            yield f"{change.__name__}, running", lambda change=change: running(lab, change)


options = parser(__doc__, changes=35).parse_args()
main(options, experiment, jobs=1)
