#!/usr/bin/env python3
"""Linnet beside PyTorch on the CPU: images/s of the same training step, in turns, in one run.

    /usr/bin/python3 scripts/vs_pytorch.py --rounds 7 --out docs/records/step-cpu.json
    /usr/bin/python3 scripts/vs_pytorch.py ... --torch - --torch /path/of/a/newer/torch

A step is: random crop, flip and normalisation of a batch from resident bytes, forward, loss, backward, SGD with momentum
and weight decay, all in float32. Each measurement is a process of its own; a round runs each once, so that a slow moment
of the machine hits all alike. PyTorch runs eagerly and through torch.compile, in both memory formats, with its fused SGD
where it has one. Prints a table; --out keeps every number.
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def worker(options):
    """One measurement of PyTorch: the line of JSON that bench_step prints."""
    import torch
    import torch.nn.functional as F

    from torch_resnet import ResNet

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    count, pad, batch = max(2048, 8 * options.batch), 4, options.batch
    padded = torch.zeros(count, 32 + 2 * pad, 32 + 2 * pad, 3, dtype=torch.uint8)
    padded[:, pad:-pad, pad:-pad] = torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8)
    targets = torch.randint(10, (count,))
    mean, std = torch.tensor([0.49, 0.48, 0.45]), torch.tensor([0.25, 0.24, 0.26])
    scale, shift = 1 / (255 * std), -mean / std

    form = torch.channels_last if options.layout == "channels_last" else torch.contiguous_format
    model = ResNet(int(options.model.removeprefix("resnet"))).to(memory_format=form).train()
    try:
        sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4, fused=True)
    except (TypeError, RuntimeError):  # before 2.4
        sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    forward = torch.compile(model) if options.compile else model
    order, first, row = torch.randperm(count), 0, torch.arange(32)

    def step():
        nonlocal order, first
        if first + batch > count:
            order, first = torch.randperm(count), 0
        at, first = order[first:first + batch], first + batch
        y = torch.randint(2 * pad + 1, (batch, 1)) + row
        x = torch.randint(2 * pad + 1, (batch, 1)) + torch.where(torch.rand(batch, 1) < 0.5, row, 31 - row)
        images = padded[at[:, None, None], y[:, :, None], x[:, None, :]] * scale + shift
        images = images.permute(0, 3, 1, 2).contiguous(memory_format=form)
        sgd.zero_grad(set_to_none=True)
        loss = F.cross_entropy(forward(images), targets[at])
        loss.backward()
        sgd.step()
        return loss

    for _ in range(3):
        step()
    ms = []
    while sum(ms) < options.seconds * 1e3 or len(ms) < 3:
        start = time.perf_counter()
        loss = step()
        ms.append((time.perf_counter() - start) * 1e3)
    assert torch.isfinite(loss)
    median = statistics.median(ms)
    print(json.dumps({"images_per_s": batch / median * 1e3, "ms": median, "ms_min": min(ms), "steps": len(ms),
                      "threads": torch.get_num_threads(), "version": torch.__version__}))


def torch_version(path):
    env = dict(os.environ, PYTHONPATH="" if path == "-" else path)
    done = subprocess.run([sys.executable, "-c", "import torch; print(torch.__version__)"], env=env, capture_output=True,
                          text=True)
    if done.returncode != 0:
        sys.exit(f"{sys.executable} cannot import torch (--torch {path}); run this with an interpreter that can:\n{done.stderr}")
    return done.stdout.strip()


def contestants(options):
    """{name: (command, environment)}, Linnet first."""
    common = ["--model", options.model, "--batch", str(options.batch), "--threads", str(options.threads),
              "--seconds", str(options.seconds)]
    runs = {"Linnet": ([options.bench, "--json", *common], dict(os.environ))}
    for path in options.torch or ["-"]:
        version = torch_version(path)
        # PyTorch's own libraries come first: no PYTHONPATH of the caller's may mix two versions.
        env = dict(os.environ, PYTHONPATH="" if path == "-" else path, OMP_NUM_THREADS=str(options.threads))
        for compiled in (False, True) if not version.startswith("1.") else (False,):
            for layout in ("channels_last", "contiguous"):
                name = f"PyTorch {version} {layout}{', torch.compile' if compiled else ''}"
                command = [sys.executable, __file__, "--worker", *common, "--layout", layout]
                runs[name] = (command + ["--compile"] * compiled, env)
    return runs


def read(path):
    try:
        return pathlib.Path(path).read_text()
    except OSError:
        return ""


def machine():
    cpu = [line.split(":")[1].strip() for line in read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    git = lambda *command: subprocess.run(["git", "-C", ROOT, *command], capture_output=True, text=True).stdout.strip()
    return {"cpu": cpu[0] if cpu else platform.processor(), "cores": len(os.sched_getaffinity(0)),
            "system": platform.platform(), "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "commit": git("rev-parse", "--short", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else ""),
            "load_before": os.getloadavg()[0]}


def compare(options):
    record = {"machine": machine(), "model": options.model, "batch": options.batch, "threads": options.threads,
              "precision": "f32", "rounds": options.rounds, "seconds": options.seconds}
    runs = contestants(options)
    rounds = {name: [] for name in runs}
    for k in range(options.rounds):
        for name in list(rounds):
            command, env = runs[name]
            done = subprocess.run(command, env=env, capture_output=True, text=True)
            if done.returncode != 0 and name == "Linnet":
                sys.exit(f"{command[0]} failed:\n{done.stderr}")
            if done.returncode != 0:  # torch.compile needs a compiler and more packages: say so, go on without
                print(f"{name} does not run here: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                del rounds[name]
                continue
            rounds[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {k + 1}: {name}: {rounds[name][-1]['images_per_s']:.0f} images/s", file=sys.stderr)
    record["results"] = {}
    print("| step | images/s, median of rounds | ms, best step | Linnet is faster by: median (range) |\n|---|---|---|---|")
    for name, of_round in rounds.items():
        ratios = [a["images_per_s"] / b["images_per_s"] for a, b in zip(rounds["Linnet"], of_round)]
        rate, best = statistics.median(r["images_per_s"] for r in of_round), min(r["ms_min"] for r in of_round)
        record["results"][name] = {"images_per_s": rate, "ms_min": best, "ratio": statistics.median(ratios),
                                   "ratio_range": [min(ratios), max(ratios)], "rounds": of_round}
        print(f"| {name} | {rate:.0f} | {best:.1f} | {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) |")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", default=str(ROOT / "build/bench_step"), help="the program bench_step")
    parser.add_argument("--torch", action="append", metavar="PATH",
                        help="folder with a PyTorch (pip install --target); - is this Python's own (default). May be repeated")
    parser.add_argument("--model", default="resnet20", choices=[f"resnet{n}" for n in (20, 32, 44, 56, 110)])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=5, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, help="JSON record")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--layout", default="channels_last", help=argparse.SUPPRESS)
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    worker(options) if options.worker else compare(options)


if __name__ == "__main__":
    main()
