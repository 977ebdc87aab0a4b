#!/usr/bin/env python3
"""G10: two `linnet resume` of one folder at the same time: one trains, the other ends with 7 and names it.

  lock.py LINNET [--pairs N] [--seed S] [--control]

Then the one that trains is killed by SIGKILL, and the next one has the folder at once. `linnet eval` needs no lock.
--control: the second one starts after the LOCK file was removed, and then both train.
"""
import shutil
import subprocess
import time

from runs import Broken, count_rows, expect, main, parser


def trains(lab, folder):
    return lab.start("resume", folder, "--epochs", "1000000", stdout=subprocess.DEVNULL)


def refused(process, holder, folder):
    try:
        error = process.communicate(timeout=60)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        raise Broken("both train") from None
    expect(process.returncode == 7, f"exit {process.returncode}, {error[-300:]}")
    expect(f"is in use by process {holder.pid} on " in error, f"it does not name {holder.pid}: {error[-300:]}")


def pair(lab, base):
    folder = lab.fresh()
    shutil.copytree(base, folder)
    both = [trains(lab, folder)]
    if lab.control:
        while count_rows(folder) <= count_rows(base):
            time.sleep(0.001)
        (folder / "LOCK").unlink()
    both.append(trains(lab, folder))
    third = None
    try:
        deadline = time.time() + 20
        while all(p.poll() is None for p in both):
            expect(time.time() < deadline, "both train")
            time.sleep(0.001)
        loser, holder = sorted(both, key=lambda p: p.poll() is None)
        refused(loser, holder, folder)
        expect(holder.poll() is None, f"neither trains: exit {holder.poll()}")
        holder.kill()
        holder.wait()
        third = trains(lab, folder)
        while f'"pid":{third.pid},' not in (folder / "LOCK").read_text():
            expect(third.poll() is None, "the lock is not free after a SIGKILL")
            time.sleep(0.001)
        fourth = trains(lab, folder)
        refused(fourth, third, folder)
        return {"pairs": 1}
    finally:
        for process in [*both, third]:
            if process and process.poll() is None:
                process.kill()
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def reads(lab, base):
    folder = lab.fresh()
    shutil.copytree(base, folder)
    shutil.copy(lab.reference("adamw") / "model.safetensors", folder)
    process = trains(lab, folder)
    try:
        while count_rows(folder) <= count_rows(base):
            expect(process.poll() is None, "it does not train")
            time.sleep(0.001)
        run = lab.call("eval", folder)
        expect(run.returncode == 0, f"eval: exit {run.returncode}, {run.err}")
        return {"reads beside a run": 1}
    finally:
        process.kill()
        process.wait()


def experiment(lab):
    base = lab.killed_midway("adamw")
    for n in range(options.pairs):
        yield f"pair {n}", lambda: pair(lab, base)
    if not lab.control:
        yield "eval", lambda: reads(lab, base)


options = parser(__doc__, pairs=100).parse_args()
main(options, experiment, jobs=1)
