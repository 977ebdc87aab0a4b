#!/usr/bin/env python3
"""G5, G8, N6: a disk that is full, limited, read-only, of another user, or no disk at all, or too little memory, under a whole run.

  disk.py LINNET [--rounds N] [--seed S] [--control]

Each time it ends with 4 (or the code that fits) and one clear message, never by a signal; and once the cause is gone,
the run goes on to the bits of one that was not disturbed. --control: a disk that was full for a naive writer, which has
overwritten the checkpoints in place.
"""
import os
import random
import resource
import shutil
import subprocess
import time

from runs import Broken, expect, main, mount, parser, same, tmpfs, wait_for_rows, with_mounts


def clear(process, error, codes=(4,), says=()):
    expect(process.returncode in codes, f"exit {process.returncode}, {error[-500:]}")
    if process.returncode:
        last = error.strip().split("\n")
        expect(any(line.startswith("error: ") for line in last), f"no message: {error[-300:]}")
        expect(not says or any(s in error for s in says), f"none of {says} in: {error[-500:]}")


def resumes(lab, folder, name):
    lab.finish(folder, name)
    same(folder, lab.reference(name), checkpoints=False)  # where the disk was full, the oldest may have gone


def full(lab, name, left):
    """A tmpfs that another process fills up, but for some bytes, in the middle of the run."""
    with tmpfs(lab.fresh(), "64m") as disk:
        process = lab.start("train", lab.config(name), "--out", disk / "run", stdout=subprocess.DEVNULL)
        wait_for_rows(process, disk / "run", random.randrange(1, 60))
        fill(disk, left)
        error = process.communicate(timeout=60)[1]
        clear(process, error, (0, 4), ["No space left"])
        (disk / "filler").unlink()
        resumes(lab, disk / "run", name)
        return {f"full disks, exit {process.returncode}": 1}


def fill(disk, left):
    with open(disk / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
        size = file.tell()
    os.truncate(disk / "filler", max(0, size - left))


def small(lab, name):
    """G8: too small for the checkpoints from the beginning: nothing is trained."""
    with tmpfs(lab.fresh(), "2m") as disk:
        run = lab.call("train", lab.config(name), "--out", disk / "run")
        clear(run, run.err, says=["bytes are free", "are free; free some"])
        expect(not (disk / "run" / "config.toml").exists(), "there is a run already")
        mount("-o", "remount,size=64m", disk)
        resumes(lab, disk / "run", name)  # by the same command
        return {"too small disks": 1}


def file_size(lab, name, limit):
    folder = lab.fresh()
    run = lab.call("train", lab.config(name), "--out", folder,
                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    clear(run, run.err, (0, 4), ["File too large"])
    resumes(lab, folder, name)
    return {f"file-size limits, exit {run.returncode}": 1}


def descriptors(lab, name, limit):
    folder = lab.fresh()
    run = lab.call("train", lab.config(name), "--out", folder,
                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)))
    if run.returncode != 127:  # the loader found its libraries
        clear(run, run.err, (0, 1, 3, 4))
    resumes(lab, folder, name)
    return {f"descriptor limits, exit {run.returncode}": 1}


def read_only(lab, name):
    folder = lab.killed_midway(name, 60)
    before = sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*"))
    mount("--bind", folder, folder)
    mount("-o", "remount,bind,ro", folder)
    try:
        run = lab.call("resume", folder)
        clear(run, run.err, says=["Read-only file system"])
        new = lab.call("train", lab.config(name), "--out", folder / "new")
        clear(new, new.err, says=["Read-only file system"])
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    expect(before == sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*")), "something has changed")
    resumes(lab, folder, name)
    return {"read-only disks": 1}


def other_user(lab, name):
    """Root ignores mode bits, so another user it is."""
    lab.root.chmod(0o755)
    folder = lab.killed_midway(name, 60)
    (folder / "checkpoints").chmod(0o755)
    run = lab.call("resume", folder, user=65534, group=65534, cwd="/")
    clear(run, run.err, says=["Permission denied"])
    resumes(lab, folder, name)
    return {"folders of another user": 1}


def no_disk(lab, name, log):
    """A log that leads to /dev/full."""
    folder = lab.killed_midway(name, 60)
    (folder / log).rename(folder / "kept")
    (folder / log).symlink_to("/dev/full")
    run = lab.call("resume", folder)
    clear(run, run.err, says=[log])
    (folder / log).unlink()
    (folder / "kept").rename(folder / log)
    resumes(lab, folder, name)
    return {"logs to /dev/full": 1}


def no_streams(lab, name):
    """stderr does not matter; a result that stdout does not take is an error, but the run is whole."""
    folder = lab.fresh()
    with open("/dev/full", "w") as nowhere:
        run = lab.call("train", lab.config(name), "--out", folder, stderr=nowhere)
        expect(run.returncode == 0 and "test accuracy" in run.out, f"exit {run.returncode}")
        shutil.rmtree(folder)
        run = lab.call("train", lab.config(name), "--out", folder, stdout=nowhere)
        clear(run, run.err, (1,))
    same(folder, lab.reference(name))
    return {"streams to /dev/full": 1}


def memory(lab, name):
    """Little address space. 127: not even the loader had enough."""
    folder, limit = lab.fresh(), random.randrange(90, 300) << 20
    run = lab.call("train", lab.config(name), "--out", folder, env={"MALLOC_ARENA_MAX": "1"},
                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    expect(run.returncode in (0, 4, 6, 127), f"exit {run.returncode}, {run.err[-300:]}")
    resumes(lab, folder, name)
    return {f"memory limits, exit {run.returncode}": 1}


def naive(lab, name):
    folder = lab.killed_midway(name)
    for file in folder.glob("checkpoints/*/model.safetensors"):
        os.truncate(file, file.stat().st_size // 2)
    resumes(lab, folder, name)


def experiment(lab):
    names = ["adamw", "sgd"]
    for name in names:
        lab.reference(name)
    mounts = with_mounts()
    if not mounts:
        print("no right to mount: the full, the small and the read-only disk are skipped")
    for n in range(options.rounds):
        name = names[n % 2]
        if lab.control:
            yield f"naive {name}", lambda name=name: naive(lab, name)
            continue
        if mounts:
            left = random.choice([0, 4096, 65536, 200_000, 400_000, 1_000_000])
            yield f"full {name} {left}", lambda name=name, left=left: full(lab, name, left)
            yield f"small {name}", lambda name=name: small(lab, name)
            yield f"read-only {name}", lambda name=name: read_only(lab, name)
        limit = int(10 ** random.uniform(1, 6))
        yield f"file size {limit} {name}", lambda name=name, limit=limit: file_size(lab, name, limit)
        yield f"descriptors {name}", lambda name=name, n=n: descriptors(lab, name, 3 + n % 12)
        yield f"memory {name}", lambda name=name: memory(lab, name)
        if os.geteuid() == 0:
            yield f"other user {name}", lambda name=name: other_user(lab, name)
        for log in ("metrics.jsonl", "timing.jsonl"):
            yield f"/dev/full {log} {name}", lambda name=name, log=log: no_disk(lab, name, log)
        yield f"streams {name}", lambda name=name: no_streams(lab, name)


options = parser(__doc__, rounds=20).parse_args()
with_mounts()
main(options, experiment, jobs=1)
