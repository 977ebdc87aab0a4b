#!/usr/bin/env python3
"""G3: the power is cut in the middle of a save, and the disk kept what it liked of what was not yet synced.

  power_cut.py SAVE_CHILD [--saves N] [--mixes N] [--seed S] [--control]

strace logs what one process does to its folder, every byte. A model of a disk replays that log and stops after each
call: what an fsync has covered is there; of all else each write may be kept, lost, torn at 512 bytes or turned to
zeros, and each creation, rename and removal may be kept or lost, whatever came before it. Tried at each stop: all kept,
all lost, each one alone kept, lost, torn and zeroed, and --mixes random ones. In each folder that comes out the program
must load the newest checkpoint that was reported, or a newer one, with its own content, and save the next.
The model is checked too: with all kept it must end with the folder that the process left.
Then the way to a run (of linnet, beside SAVE_CHILD): each folder made for it is synced into its parent before the first
checkpoint gets its name.
--control forgets every fsync; it passes only if failures are found.
"""
import argparse
import codecs
import hashlib
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

from kill_save import Torture

CALLS = ("open openat creat write pwrite64 writev fsync fdatasync rename renameat renameat2 unlink unlinkat mkdir mkdirat rmdir "
         "truncate ftruncate link linkat symlink symlinkat copy_file_range sendfile")


class File:
    def __init__(self, durable=b""):
        self.durable, self.pending = durable, []  # pending: (offset, bytes)

    def content(self, choose):
        data = bytearray(self.durable)
        for op in self.pending:
            offset, written = op
            kept = choose(op)
            if kept == "lost":
                continue
            if kept == "torn":
                written = written[:len(written) // 1024 * 512]
            elif kept == "zeroed":
                written = bytes(len(written))
            data.extend(bytes(max(0, offset + len(written) - len(data))))
            data[offset:offset + len(written)] = written
        return bytes(data)


class Folder:
    def __init__(self):
        self.durable, self.now, self.pending = {}, {}, []  # name -> File or Folder; pending: (name, what it became)...

    def change(self, *entries):
        """One change of names, whole or not at all: (name, None) removes. A rename is two of them."""
        self.pending.append(entries)
        apply(self.now, entries)

    def entries(self, choose):
        names = dict(self.durable)
        for op in self.pending:
            if choose(op) != "lost":
                apply(names, op)
        return names


def apply(names, entries):
    for name, node in entries:
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def read_disk(path):
    if path.is_file():
        return File(path.read_bytes())
    folder = Folder()
    for child in path.iterdir():
        folder.durable[child.name] = folder.now[child.name] = read_disk(child)
    return folder


def tree(node, choose, prefix=""):
    """What is on the disk after the cut: path -> bytes, or None for a folder."""
    if isinstance(node, File):
        return {prefix: node.content(choose)}
    found = {prefix + "/": None}
    for name, child in node.entries(choose).items():
        found |= tree(child, choose, f"{prefix}/{name}")
    return found


def pending(node):
    """All that is not synced, below the names of now and of the disk."""
    if isinstance(node, File):
        return list(node.pending)
    found, nodes = list(node.pending), {id(n): n for n in [*node.durable.values(), *node.now.values()]}
    for op in node.pending:
        nodes |= {id(n): n for _, n in op if n is not None}
    for child in nodes.values():
        found += [op for op in pending(child) if not any(op is f for f in found)]
    return found


class Disk:
    """The folder of checkpoints, fed with the lines of strace -y."""

    def __init__(self, root, forget_fsync):
        self.path, self.root, self.forget_fsync = str(root), read_disk(root), forget_fsync
        self.offsets = {}  # a descriptor's place in its file

    def node(self, path):
        at = self.root
        for part in pathlib.PurePath(path).relative_to(self.path).parts:
            at = at.now[part]
        return at

    def inside(self, path):
        return path == self.path or path.startswith(self.path + "/")

    def feed(self, line):
        """Returns whether the line changed the disk's state."""
        m = re.match(r"(?:\d+ +)?(\w+)\((.*)\)\s+= (-?\d+)(?:<(.*)>)?$", line)
        if not m or int(m[3]) < 0:
            return False
        call, args, result = m[1], m[2], int(m[3])
        at = re.match(r"(?:AT_FDCWD|(\d+))(?:<([^>]*)>)?, ", args)
        fd, base = (at[1], at[2]) if at else (None, None)
        if call in ("write", "fsync", "fdatasync") and not base and (m2 := re.match(r"(\d+)<([^>]*)>$", args)):
            fd, base = m2[1], m2[2]
        names = [codecs.escape_decode(s.encode())[0] for s in re.findall(r'"((?:[^"\\]|\\.)*)"', args)]
        if call in ("fsync", "fdatasync"):
            if not self.inside(base):
                return False
            if not self.forget_fsync:
                self.sync(self.node(base))
            return True
        if call == "write":
            if not self.inside(base):
                return False
            offset = self.offsets[fd]
            self.node(base).pending.append((offset, names[0][:result]))
            self.offsets[fd] = offset + result
            return True
        paths = [str(pathlib.PurePath(base or "/") / n.decode()) for n in names]
        if call == "openat" and self.inside(m[4] or paths[0]):
            self.offsets[str(result)] = 0
            if "O_CREAT" not in args:
                return False
            assert "O_APPEND" not in args and "O_TRUNC" not in args, line
            folder, name = self.node(pathlib.PurePath(paths[0]).parent), pathlib.PurePath(paths[0]).name
            if name in folder.now:
                return False
            folder.change((name, File()))
            return True
        if not paths or not self.inside(paths[0]) or call in ("open", "openat"):
            return False
        folder, name = self.node(pathlib.PurePath(paths[0]).parent), pathlib.PurePath(paths[0]).name
        if call in ("mkdirat", "mkdir"):
            folder.change((name, Folder()))
        elif call in ("unlinkat", "unlink", "rmdir"):
            folder.change((name, None))
        elif call in ("renameat", "renameat2", "rename"):
            new = pathlib.PurePath(paths[1])
            assert str(new.parent) == str(pathlib.PurePath(paths[0]).parent), line
            folder.change((new.name, folder.now[name]), (name, None))
        else:
            raise AssertionError(f"a call that the model does not know: {line[:200]}")
        return True

    @staticmethod
    def sync(node):
        if isinstance(node, File):
            node.durable = node.content(lambda _: "kept")
        else:
            node.durable = dict(node.now)
        node.pending = []

    def cuts(self, mixes):
        """Every state tried here: a name, and what becomes of each pending change."""
        ops = pending(self.root)
        yield "all kept", lambda _: "kept"
        yield "all lost", lambda _: "lost"
        for i, op in enumerate(ops):
            yield f"only change {i} kept", lambda o, op=op: "kept" if o is op else "lost"
            fates = ["lost"] + (["torn", "zeroed"] if isinstance(op[0], int) else [])
            for fate in fates:
                yield f"change {i} {fate}", lambda o, op=op, fate=fate: fate if o is op else "kept"
        for n in range(mixes if len(ops) > 2 else 0):
            fates = {id(op): random.choice(["kept", "lost", "torn", "zeroed"]) for op in ops}
            yield f"mix {n}", lambda o, fates=fates: fates[id(o)]


def trace_of_a_run(lab, linnet):
    """The calls of a short `linnet train` into a folder of a folder that is not there yet."""
    config, log = lab.root / "run.toml", lab.root / "log"
    config.write_text('data.name = "synthetic"\ndata.samples = 64\ndata.val = 8\ndata.image_size = 8\nmodel.name = "linear"\n'
                      "train.epochs = 1\ntrain.batch_size = 16\noptimizer.lr = 0.01\n")
    subprocess.run(["strace", "-f", "-y", "-qq", "-e", "signal=none", "-e", "trace=?mkdir,mkdirat,fsync,?rename,renameat,renameat2",
                    "-o", log, linnet, "train", config, "--out", lab.root / "a/b/run"], capture_output=True, check=True,
                   env=os.environ | {"OMP_NUM_THREADS": "1"})
    return log.read_text(errors="replace").split("\n")


def unsynced_way(lines):
    """The folders on the way to the first checkpoint that were made and not synced when it gets its name."""
    made = set()
    for line in lines:
        if m := re.search(r'mkdir(?:at\(\d+<([^>]*)>, |\()"([^"]*)", \d+\)\s+= 0', line):
            made.add(f"{m[1]}/{m[2]}" if m[1] else m[2])
        elif m := re.search(r"fsync\(\d+<([^>]*)>\)\s+= 0", line):
            made = {path for path in made if str(pathlib.PurePath(path).parent) != m[1]}
        elif m := re.search(r'renameat\(\d+<([^>]*/checkpoints)>, "\.tmp-.*= 0', line):
            return sorted(path for path in made if f"{m[1]}/".startswith(f"{path}/"))
    return ["no checkpoint was published"]


def write_tree(folder, found):
    shutil.rmtree(folder, ignore_errors=True)
    for path, content in sorted(found.items()):
        target = folder / path.lstrip("/")
        if content is None:
            target.mkdir(parents=True)
        else:
            target.write_bytes(content)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("child", type=pathlib.Path)
    parser.add_argument("--saves", type=int, default=4)
    parser.add_argument("--mixes", type=int, default=6, help="random fates at each stop")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--control", action="store_true")
    options = parser.parse_args()
    options.only = ""
    random.seed(options.seed)
    memory = pathlib.Path("/dev/shm")
    tempfile.tempdir = str(memory) if memory.is_dir() else None
    begin, child = time.time(), options.child.resolve()

    forget, options.control, options.child = options.control, False, child
    lab = Torture(options)
    folder, log = lab.fresh(), lab.root / "log"
    disk = Disk(folder / "checkpoints", forget)
    subprocess.run(["strace", "-f", "-y", "-x", "-qq", "-s", "1000000", "-e", "signal=none", "-e", "trace=" + ",".join(
        f"?{call}" for call in CALLS.split()), "-o", log, child, folder, str(options.saves)], capture_output=True, check=True)

    reported, seen, failures, stops = 3, set(), [], 0
    for line in log.read_text(encoding="latin1").split("\n"):
        if m := re.search(r'write\(1<[^>]*>, "saved (\d+)', line):
            reported = int(m[1])
        elif not disk.feed(line):
            continue
        stops += 1
        for name, choose in disk.cuts(options.mixes):
            found = tree(disk.root, choose)
            digest = hashlib.sha256(repr((reported, sorted(found.items()))).encode()).digest()
            if digest in seen:
                continue
            seen.add(digest)
            cut = lab.root / "cut"
            write_tree(cut / "checkpoints", found)
            run = subprocess.run([child, cut, "1"], capture_output=True)
            loaded = re.match(rb"loaded (\d+)\nsaved (\d+)\n$", run.stdout)
            if run.returncode != 0 or not loaded or int(loaded[1]) < reported:
                failures.append(f"stop {stops}, {name}: expected step {reported} or newer, got exit {run.returncode}, "
                                f"{run.stdout.decode()!r} {run.stderr.decode()[:300]}")
        if forget and failures:
            break
    calls = trace_of_a_run(lab, child.with_name("linnet"))
    seen.add("the way")
    if way := unsynced_way([call for call in calls if not (forget and "fsync" in call)]):
        failures.append(f"the way to a run: not synced: {way}")
    elif forget:
        failures = []  # the control must be found wrong there, too
    if not forget:
        left = {k: v for k, v in tree(read_disk(folder / "checkpoints"), None).items()}
        if tree(disk.root, lambda _: "kept") != left:
            failures.append("the model: with all kept it does not end with the folder that the process left")
    shutil.rmtree(lab.root)
    for failure in failures[:20]:
        print("  " + failure.strip())
    print(f"{stops} stops, {len(seen)} states ({time.time() - begin:.0f} s)")
    if forget:
        print(f"control: {len(failures)} failures found in {len(seen)}")
        return 0 if failures else 1
    print(f"{len(seen) - len(failures)} of {len(seen)}")
    return 1 if failures or not seen else 0


if __name__ == "__main__":
    sys.exit(main())
