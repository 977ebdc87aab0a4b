#!/usr/bin/env python3
"""G2: the power is cut under real file systems: ext4 with a journal committed each second, and each fifth (its default);
xfs and btrfs where their mkfs is installed.

  power_cut_disk.py LINNET [--cuts N] [--runs N] [--seed S] [--control]

A file holds the disk, a loop device mounts it. At a random instant the process is stopped and the file is copied while
nothing is written to it: the copy is the disk after the cut. Mounted in its place, which replays its journal, it must
load the newest checkpoint that was reported, or a newer one, and everything goes on from there.
--cuts: of save_child (beside LINNET), on each file system. --runs: whole runs of linnet, cut and resumed until one comes
through, with the bits of one that was not disturbed. --control: fsync does nothing; passes only if that is found.
What a disk itself reorders or tears before a sync is not tried here, but in power_cut.py. Needs the right to mount.
"""
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

from kill_save import Torture
from runs import VARIANTS, Broken, expect, main, mount, parser, same, with_mounts

# mkfs, what it makes and how it is mounted. A small journal is replayed, and filled, more often.
KINDS = {
    "ext4, commit=1": (["mkfs.ext4", "-q", "-J", "size=4"], "48M", "commit=1"),
    "ext4, commit=5": (["mkfs.ext4", "-q", "-J", "size=4"], "48M", "commit=5"),
    "xfs": (["mkfs.xfs", "-q"], "320M", "nouuid"),
    "btrfs": (["mkfs.btrfs", "-q"], "160M", "commit=1"),
}


class Disk:
    """A file system in a file, mounted at `at`."""

    def __init__(self, lab, kind):
        make, size, self.options = KINDS[kind]
        self.at, self.image = lab.fresh(), lab.fresh()
        self.at.mkdir()
        subprocess.run(["truncate", "-s", size, self.image], check=True)
        subprocess.run([*make, self.image], check=True, capture_output=True)
        self.mount()

    def mount(self):
        mount("-o", f"loop,{self.options}", self.image, self.at)
        loop = subprocess.run(["losetup", "-n", "-O", "NAME", "-j", self.image], check=True, capture_output=True, text=True)
        self.stat = pathlib.Path("/sys/block", pathlib.Path(loop.stdout.split()[0]).name, "stat")

    def writes(self):
        """How many came, all of them finished; None: one is under way."""
        fields = [int(f) for f in self.stat.read_text().split()]
        return None if fields[8] else (fields[4], fields[11])

    def cut(self, process):
        """Stops the process, ends it, and leaves the disk as a power cut at the instant of the copy would have."""
        copy, deadline = self.image.with_suffix(".cut"), time.time() + 30
        while True:
            expect(time.time() < deadline, "the disk never rests")
            before = self.writes()
            subprocess.run(["cp", "--sparse=always", self.image, copy], check=True)
            if before and before == self.writes():
                break
        process.kill()
        process.wait()
        self.unmount()
        copy.rename(self.image)
        self.mount()

    def unmount(self):
        deadline = time.time() + 30
        while subprocess.run(["umount", str(self.at)], capture_output=True).returncode != 0:
            expect(time.time() < deadline, "it cannot be unmounted")
            time.sleep(0.01)

    def remove(self):
        self.unmount()
        self.image.unlink()


class Saves:
    """save_child on one disk, cut again and again."""

    def __init__(self, lab, kind):
        self.lab, self.kind, self.disk = lab, kind, None
        self.child = pathlib.Path(lab.linnet).parent / "save_child"

    def fresh(self):
        if self.disk:
            self.disk.remove()
        self.disk, self.reported = Disk(self.lab, self.kind), 0
        (self.disk.at / "run").mkdir()
        os.sync()

    def cut(self, n):
        if n % 25 == 0 or self.disk is None:
            self.fresh()
        folder, said = self.disk.at / "run", self.lab.root / "said"
        forget = "strace -D -f -qq -o /dev/null -e trace=fsync,fdatasync -e inject=fsync,fdatasync:retval=0".split()
        with open(said, "wb") as out:
            process = subprocess.Popen([*(forget if self.lab.control else []), self.child, folder, "1000000"], stdout=out,
                                       stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(0, 0.3))
        deadline = time.time() + 20
        while self.lab.control and Torture.steps(said.read_bytes()) < 3 and time.time() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        self.reported = max(self.reported, Torture.steps(said.read_bytes()))
        self.disk.cut(process)
        run = subprocess.run([self.child, folder, "--check"], capture_output=True)
        got, reported, disk = Torture.steps(run.stdout), self.reported, self.disk
        if run.returncode != 0 or got < reported:
            disk.remove()
            self.disk = None
            raise Broken(f"expected step {reported} or newer, got exit {run.returncode}, step {got} "
                         f"{run.stderr.decode(errors='replace')[:200]}")
        return {f"cuts on {self.kind}": 1}


def chain(lab, name, kind):
    """A whole run, cut until it comes through."""
    disk, cuts = Disk(lab, kind), 0
    try:
        folder = disk.at / "runs" / "mine"
        while True:
            process = lab.start(*lab.go_on(folder, name), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            time.sleep(random.uniform(0, 0.5 * lab.seconds[name]) if cuts < 12 else 0)
            if cuts < 12 and process.poll() is None:
                process.send_signal(signal.SIGSTOP)
                disk.cut(process)
                cuts += 1
                continue
            error = process.communicate(timeout=120)[1]
            expect(process.returncode == 0, f"it cannot go on: exit {process.returncode}, {error[-500:]}")
            same(folder, lab.reference(name), checkpoints=False)
            return {f"cuts of whole runs on {kind}": cuts, "whole runs": 1}
    finally:
        disk.remove()


def experiment(lab):
    kinds = [k for k in KINDS if shutil.which(KINDS[k][0][0])]
    if lab.control:
        for kind in kinds:
            saves = Saves(lab, kind)
            yield f"no fsync, {kind}", lambda saves=saves: saves.cut(0)
        return
    for n in range(options.runs):
        name, kind = list(VARIANTS)[n % len(VARIANTS)], kinds[n // len(VARIANTS) % len(kinds)]
        lab.reference(name)
        yield f"run {n}, {name} on {kind}", lambda name=name, kind=kind: chain(lab, name, kind)
    for kind in kinds:
        saves = Saves(lab, kind)
        for n in range(options.cuts):
            yield f"cut {n} on {kind}", lambda saves=saves, n=n: saves.cut(n)
        saves.disk.remove() if saves.disk else None


def loops():
    """Whether a disk in a file can be made and mounted here."""
    if os.geteuid() != 0 or not with_mounts() or not shutil.which("mkfs.ext4"):
        return False
    folder = pathlib.Path(os.environ.get("TMPDIR", "/tmp"), f"linnet-loop-{os.getpid()}")
    folder.mkdir()
    try:
        image = folder / "image"
        subprocess.run(["truncate", "-s", "8M", image], check=True)
        subprocess.run(["mkfs.ext4", "-q", image], check=True, capture_output=True)
        mount("-o", "loop", image, folder)
        subprocess.run(["umount", str(folder)], check=True)
        return True
    except (subprocess.CalledProcessError, OSError):
        return False
    finally:
        shutil.rmtree(folder)


if os.path.isdir("/dev/shm"):
    os.environ["TMPDIR"] = "/dev/shm"
options = parser(__doc__, cuts=200, runs=8).parse_args()
if not loops():
    print("skipped: a disk in a file cannot be mounted here")
    sys.exit(0)
main(options, experiment, jobs=1)
