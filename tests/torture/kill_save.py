#!/usr/bin/env python3
"""Kills a process that saves checkpoints and lets its system calls fail; what was reported as saved must then load.

  kill_save.py SAVE_CHILD [--kills N] [--seed S] [--only kill,entry,fault,order] [--saves N] [--control]

kill:  SIGKILL after random times, each run going on where the one before was killed.
entry: SIGKILL at every entry of every system call that touches files (strace).
fault: each of these calls fails once: EIO, ENOSPC, EDQUOT, EINTR, a short write, a write that claims more than it wrote;
       a failed fsync must not be repeated on the same descriptor.
order: what a power cut needs: each file is synced before the rename, the folder before "saved" and before old files go.
       Its own control: the same log without any one of these fsyncs must be found wrong.

After each: the checkpoint that loads is the newest that was reported, or a newer one, with the content of its step.
--control does the same to a writer that overwrites one file in place; it passes only if failures are found.
"""
import argparse
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

SYSCALLS = ("open openat write pwrite64 fsync fdatasync rename renameat renameat2 unlink unlinkat mkdir mkdirat rmdir "
            "close ftruncate flock getdents64").split()
FAULTS = ["error=EIO", "error=ENOSPC", "error=EDQUOT", "error=EINTR"]
WRITE_FAULTS = FAULTS + ["retval=1", "retval=100"]  # the call is not made, and claims so many bytes
CLEAR = (0, 4, 127)  # done, refused with a message, not even started (the loader's own open failed)


class Torture:
    def __init__(self, options):
        self.child, self.control, self.saves = options.child, options.control, options.saves
        self.naive = ["--naive"] if options.control else []
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="linnet-torture-"))
        self.done, self.failures = 0, []

    @staticmethod
    def steps(text):
        """The newest step that was reported, loaded or saved; only whole lines count."""
        lines = text.decode(errors="replace").split("\n")[:-1]
        return max([int(m[1]) for m in (re.fullmatch(r"(?:saved|loaded) (\d+)", line) for line in lines) if m], default=0)

    def check(self, folder, reported, what):
        """Whether `folder` loads at least step `reported`. Returns the step."""
        self.done += 1
        run = subprocess.run([self.child, folder, "--check", *self.naive], capture_output=True)
        got = self.steps(run.stdout)
        if run.returncode != 0 or got < reported:
            problem = "WRONG CONTENT" if run.returncode == 9 else f"exit {run.returncode}, step {got}"
            self.failures.append(f"{what}: expected step {reported} or newer, got {problem} {run.stderr.decode()[:300]}")
        return got

    def fresh(self):
        """A run folder with a few checkpoints, a damaged one above them, and the remains of a killed save."""
        base = self.root / "base"
        if not base.exists():
            base.mkdir()
            subprocess.run([self.child, base, "3", *self.naive], check=True, capture_output=True)
            if not self.control:
                for name in ("00000004", ".tmp-00000009-1", ".del-00000000"):
                    shutil.copytree(base / "checkpoints/00000003", base / "checkpoints" / name)
        folder = self.root / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base, folder)
        return folder

    def kill(self, kills):
        folder, reported, longest = self.fresh(), 3, 0.25
        for n in range(kills):
            if n % 50 == 49 or self.control and self.failures:  # the control's folder may be beyond use
                folder, reported = self.fresh(), 3
            process = subprocess.Popen([self.child, folder, "1000000", *self.naive], stdout=subprocess.PIPE,
                                       stderr=subprocess.DEVNULL)
            time.sleep(random.uniform(0, longest))
            process.kill()
            out = process.communicate()[0]
            reported = max(reported, self.steps(out))
            self.check(folder, reported, f"kill {n}")

    def strace(self, folder, syscall, what, at):
        """Runs the child with the at-th such call changed. Returns the run and the log's lines; None: it has no such call."""
        log = self.root / "log"
        run = subprocess.run(["strace", "-f", "-qq", "-o", log, "-e", f"trace={syscall},fsync,close", "-e", "signal=none",
                              "-e", f"inject={syscall}:{what}:when={at}", self.child, folder, str(self.saves), *self.naive],
                             capture_output=True)
        lines = log.read_text(errors="replace").split("\n")
        happened = run.returncode == -9 if "SIGKILL" in what else any("(INJECTED)" in line for line in lines)
        return (run, lines) if happened else None

    def each_call(self, changes, what):
        for syscall in SYSCALLS:
            for change in changes(syscall):
                at = 1
                while injected := self.strace(folder := self.fresh(), syscall, change, at):
                    name = f"{syscall} {change} at {at}"
                    run, lines = injected
                    what(name, syscall, folder, run, lines)
                    at += 1

    def entry(self):
        self.each_call(lambda _: ["signal=SIGKILL"], lambda name, _, folder, run, lines:
                       self.check(folder, max(3, self.steps(run.stdout)), name))

    def fault(self):
        def judge(name, syscall, folder, run, lines):
            if run.returncode not in CLEAR:
                self.failures.append(f"{name}: exit {run.returncode} {run.stderr.decode()[:300]}")
            if syscall == "fsync" and not self.synced_once(lines):
                self.failures.append(f"{name}: the descriptor is synced again")
            self.check(folder, max(3, self.steps(run.stdout)), name)
        self.each_call(lambda syscall: WRITE_FAULTS if syscall == "write" else FAULTS, judge)

    def order(self):
        log = self.root / "log"
        folder = self.fresh()
        run = subprocess.run(["strace", "-f", "-y", "-qq", "-s", "100", "-o", log, "-e", "signal=none", "-e",
                              "trace=openat,write,fsync,renameat,renameat2,unlinkat,mkdirat", self.child, folder,
                              str(self.saves + 2), *self.naive], capture_output=True, check=True)
        lines = log.read_text(errors="replace").split("\n")
        self.done += 1
        if problem := unsafe_order(lines):
            self.failures.append(f"order: {problem}")
        start = next(i for i, line in enumerate(lines) if "loaded" in line)
        for i, line in enumerate(lines):
            if i > start and "fsync(" in line:
                self.done += 1
                if not unsafe_order(lines[:i] + lines[i + 1:]):
                    self.failures.append(f"order: this fsync is not missed: {line}")
        assert run.stdout.count(b"saved") == self.saves + 2

    @staticmethod
    def synced_once(lines):
        """That no descriptor is synced between its failed fsync and its close (RELIABILITY.md, G6)."""
        failed = set()
        for line in lines:
            if m := re.search(r"\b(fsync|close)\((\d+)\)\s+= (-?\d+)", line):
                call, fd, result = m.groups()
                if call == "fsync" and fd in failed:
                    return False
                if call == "close":
                    failed.discard(fd)
                elif result != "0":
                    failed.add(fd)
        return True


def unsafe_order(lines):
    """What in a log of calls a power cut could punish; None: nothing."""
    unsynced = set()  # paths of files written and of folders changed since their last fsync
    published = None  # a checkpoint whose name is not synced yet
    for line in lines:
        if re.search(r"= -1 ", line):
            continue
        if m := re.search(r'write\(\d+<([^>]*)>, "(saved)?', line):
            path, saved = m.groups()
            if saved and unsynced:
                return f"'saved' before the sync of {sorted(unsynced)}"
            if path.startswith("/") and ("/checkpoints/" in path or path.endswith("/naive")):
                unsynced.add(path)
        elif m := re.search(r'(?:openat|mkdirat)\(\d+<([^>]*/checkpoints[^>]*)>, "([^"]*)", (.*)', line):
            folder, name, rest = m.groups()
            if "mkdirat" in line or "O_CREAT" in rest:
                unsynced |= {folder, folder + "/" + name}
        elif m := re.search(r"fsync\(\d+<([^>]*)>\)\s+= 0", line):
            unsynced.discard(m[1])
            published = published if "/.tmp-" in m[1] else None
        elif m := re.search(r'renameat2?\(\d+<([^>]*)>, "([^"]*)", \d+<[^>]*>, "([^"]*)"', line):
            folder, old, new = m.groups()
            if late := [path for path in unsynced if path.startswith(f"{folder}/{old}")]:
                return f"renamed to {new} before the sync of {sorted(late)}"
            if published and new.startswith(".del-"):
                return f"{old} goes before the sync of {published}"
            unsynced.add(folder)
            published = new if old.startswith(".tmp-") else published
        elif m := re.search(r'unlinkat\(\d+<([^>]*)/\.del-[^>]*>', line):
            if m[1] in unsynced:
                return f"a file of an old checkpoint goes before the sync of {m[1]}"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("child", type=pathlib.Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--saves", type=int, default=2, help="checkpoints to save under strace")
    parser.add_argument("--only", default="kill,entry,fault,order")
    parser.add_argument("--control", action="store_true")
    options = parser.parse_args()
    options.child = options.child.resolve()
    random.seed(options.seed)
    assert not Torture.synced_once(["1 fsync(5) = -1 EIO (INJECTED)", "1 fsync(5) = 0"])
    assert Torture.synced_once(["1 fsync(5) = -1 EIO (INJECTED)", "1 close(5) = 0", "1 fsync(5) = 0"])

    torture = Torture(options)
    for part in options.only.split(","):
        begin, done, failed = time.time(), torture.done, len(torture.failures)
        torture.kill(options.kills) if part == "kill" else getattr(torture, part)()
        count, bad = torture.done - done, len(torture.failures) - failed
        print(f"{part}: {count - bad} of {count} ({time.time() - begin:.0f} s)", flush=True)
    shutil.rmtree(torture.root)
    for failure in torture.failures[:20]:
        print("  " + failure.strip())
    if options.control:
        print(f"control: {len(torture.failures)} failures found in {torture.done}")
        return 0 if torture.failures else 1
    print(f"{torture.done - len(torture.failures)} of {torture.done}")
    return 1 if torture.failures or not torture.done else 0


if __name__ == "__main__":
    sys.exit(main())
