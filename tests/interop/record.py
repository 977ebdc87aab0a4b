#!/usr/bin/env python3
"""Runs the tests against PyTorch, ONNX and onnxruntime where they are installed, and keeps what they said.

    PYTHONPATH=... python3 tests/interop/record.py build/dev/linnet docs/records/DATE-interop.json
"""
import datetime
import json
import pathlib
import platform
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
TESTS = (["pytorch.py"], ["onnx_export.py", "--all"])


def main(exe, target):
    results = []
    for name, *flags in TESTS:
        done = subprocess.run([sys.executable, "-W", "ignore", HERE / name, exe, *flags], capture_output=True, text=True)
        said = done.stdout.splitlines() + (done.stderr.splitlines()[-5:] if done.returncode else [])
        print("\n".join(said), flush=True)
        results.append({"test": " ".join([name, *flags]), "passed": done.returncode == 0, "said": said})
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    record = {"command": "python3 tests/interop/record.py", "date": datetime.date.today().isoformat(), "commit": commit,
              "python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}", "tests": results}
    pathlib.Path(target).write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(not all(result["passed"] for result in results))


main(*sys.argv[1:])
