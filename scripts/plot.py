#!/usr/bin/env python3
"""Draws the accuracy curves of finished runs as one SVG:  scripts/plot.py RUN... > curve.svg

Needs Python alone. Reads metrics.jsonl (epoch rows: train/acc, val/acc; the test row: test/acc)."""
import html
import json
import math
import pathlib
import sys

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 360, 56, 150, 24, 44
COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"]  # Okabe and Ito: told apart by all eyes


def read(run):
    rows = [json.loads(line) for line in (pathlib.Path(run) / "metrics.jsonl").read_text().splitlines()]
    epochs = [r for r in rows if r["kind"] == "epoch"]
    if not epochs:
        sys.exit(f"{run}/metrics.jsonl has no finished epoch")
    curves = {key: [(r["epoch"], 100 * r[key]) for r in epochs if r.get(key) is not None] for key in ("train/acc", "val/acc")}
    test = next((100 * r["test/acc"] for r in rows if r["kind"] == "test"), None)
    return curves, test


def main(runs):
    if not runs or runs[0].startswith("-"):
        sys.exit(__doc__)
    data = {run: read(run) for run in runs}
    last = max(points[-1][0] for curves, _ in data.values() for points in curves.values() if points)
    lowest = 10 * math.floor(min(y for c, _ in data.values() for points in c.values() for _, y in points) / 10)

    def x(epoch):
        return LEFT + (WIDTH - LEFT - RIGHT) * (epoch / last)

    def y(percent):
        return TOP + (HEIGHT - TOP - BOTTOM) * (100 - percent) / (100 - lowest)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    for percent in range(lowest, 101, 10):
        out.append(f'<path d="M{LEFT} {y(percent):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
                   f'<text x="{LEFT - 8}" y="{y(percent) + 4:.1f}" text-anchor="end">{percent} %</text>')
    for epoch in range(0, last + 1, max(1, math.ceil(last / 10))):
        out.append(f'<text x="{x(epoch):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{epoch}</text>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">epoch</text>')
    for i, (run, (curves, test)) in enumerate(data.items()):
        color, top = COLORS[i % len(COLORS)], TOP + 70 * i
        name = html.escape(pathlib.Path(run).name[:20])
        out.append(f'<text x="{WIDTH - RIGHT + 10}" y="{top + 4}" fill="{color}" font-weight="bold">{name}</text>')
        for row, (key, dash) in enumerate((("train/acc", "4 4"), ("val/acc", "none")), 1):
            line = " ".join(f"{x(e):.1f},{y(v):.1f}" for e, v in curves[key])
            out.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2" stroke-dasharray="{dash}"/>')
            if curves[key]:
                out.append(f'<path d="M{WIDTH - RIGHT + 10} {top + 17 * row}h22" stroke="{color}" stroke-width="2" '
                           f'stroke-dasharray="{dash}"/><text x="{WIDTH - RIGHT + 38}" y="{top + 17 * row + 4}">'
                           f"{key.split('/')[0]} {curves[key][-1][1]:.1f} %</text>")
        if test is not None:
            out.append(f'<circle cx="{x(last):.1f}" cy="{y(test):.1f}" r="4" fill="{color}"/>'
                       f'<circle cx="{WIDTH - RIGHT + 21}" cy="{top + 51}" r="4" fill="{color}"/>'
                       f'<text x="{WIDTH - RIGHT + 38}" y="{top + 55}">test {test:.2f} %</text>')
    print("\n".join(out + ["</svg>"]))


if __name__ == "__main__":
    main(sys.argv[1:])
