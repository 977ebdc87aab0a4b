"""Reads a run's event files with TensorBoard's own loader: every row of metrics.jsonl is there once, and nothing else.

  tests/tensorboard_check.py RUN
"""
import json
import math
import pathlib
import sys

from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.hparams import plugin_data_pb2

run = pathlib.Path(sys.argv[1])
every = {event_accumulator.SCALARS: 0, event_accumulator.HISTOGRAMS: 0, event_accumulator.IMAGES: 0,
         event_accumulator.TENSORS: 0}
events = event_accumulator.EventAccumulator(str(run / "tensorboard"), size_guidance=every)
events.Reload()

wanted = {}
for line in (run / "metrics.jsonl").read_text().splitlines():
    row = json.loads(line)
    for name, value in row.items():
        if name in ("schema", "kind", "epoch", "step", "hash") or value is None:
            continue
        wanted.setdefault(("step/" if row["kind"] == "step" else "") + name, []).append(
            (row["step"] + (row["kind"] == "test"), value))
for tag, rows in wanted.items():
    got = [(e.step, e.value) for e in events.Scalars(tag)]
    assert [s for s, _ in got] == [s for s, _ in rows], f"{tag}: steps {got}, expected {rows}"
    assert all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-30) for (_, a), (_, b) in zip(got, rows)), tag
tags = events.Tags()
assert any(t.startswith("weights/") for t in tags["histograms"]), tags
for tag in tags["histograms"]:
    assert all(e.histogram_value.num > 0 for e in events.Histograms(tag)), tag
assert {"samples", "confusion"} <= set(tags["images"]), tags
assert "config" in tags["tensors"], tags
start = plugin_data_pb2.HParamsPluginData.FromString(
    events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
assert start.session_start_info.hparams["optimizer.name"].string_value, start
print(f"{len(wanted)} scalars, {len(tags['histograms'])} histograms, {len(tags['images'])} pictures: as in metrics.jsonl")
