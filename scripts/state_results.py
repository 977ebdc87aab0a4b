#!/usr/bin/env python3
"""Writes what was measured into the second line of each config of a folder: accuracy, time, where, and the command.
  linnet sweep configs/convnet/*.toml --epochs 1 --out runs/all && scripts/state_results.py configs/convnet runs/all [note on the time]
A config's runs are those below the folder that a sweep has named after it."""
import datetime
import json
import pathlib
import re
import sys

configs, runs, note = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), " ".join(sys.argv[3:])
for config in sorted(configs.glob("*.toml")):
    found = []
    for summary in sorted(runs.rglob("summary.json")):
        run = summary.parent
        if re.fullmatch(f"(?:{re.escape(configs.name)}-)?{re.escape(config.stem)}" + r"_s\d+", run.name):
            found.append((run, json.loads(summary.read_text()), json.loads((run / "env.json").read_text())))
    done = [f for f in found if f[1]["status"] == "done"]
    lines = config.read_text().splitlines()
    if not done:
        lines[1] = f"# Not measured yet: linnet train {config}"
    else:
        run, summary, env = done[0]
        acc = sum(s["test/acc"] for _, s, _ in done) / len(done)
        epochs = int(re.search(r"^epochs = (\d+)", (run / "config.toml").read_text(), re.M)[1])
        own = int(re.search(r"^epochs = (\d+)", "\n".join(lines), re.M)[1])
        seconds = sorted(s["wall_s"] for _, s, _ in done)[len(done) // 2]
        seeds = ", ".join(r.name.rsplit("_s", 1)[1] for r, _, _ in done)
        where = env.get("cpu") or env.get("device") or "CPU"
        date = datetime.date.fromisoformat(env["started"][:10])
        lines[1] = (f"# Measured: {100 * acc:.2f} % of the test images after {epochs} epoch{'s' * (epochs > 1)}" +
                    (f" instead of {own}" if epochs != own else "") + f" (--epochs {epochs}; seeds {seeds}),\n# {seconds:.0f} s"
                    f"{' ' + note if note else ''}: {where}, {env.get('threads', '?')} thread{'s' * (str(env.get('threads')) != '1')}, {date}, {env['linnet']}.")
        if lines[2].startswith("# ") and re.search(" threads?, ", lines[2]):  # of the time before
            del lines[2]
    config.write_text("\n".join(lines) + "\n")
    print(config, "-", lines[1])
