#!/usr/bin/env python3
"""Runs the tests against PyTorch, ONNX and onnxruntime where they are installed, and keeps what they said.

    PYTHONPATH=... python3 tests/interop/record.py build/dev/linnet docs/records/DATE-interop.json [--all]

--all: with every model through ONNX, which takes minutes.
"""
import datetime
import json
import pathlib
import platform
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
TESTS = ("pytorch.py", "onnx_export.py")


def main(exe, target, *flags):
    results = []
    started = [subprocess.Popen([sys.executable, "-W", "ignore", HERE / name, exe, *flags], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True) for name in TESTS]
    for name, process in zip(TESTS, started):
        out, errors = process.communicate()
        said = out.splitlines() + (errors.splitlines()[-5:] if process.returncode else [])
        print("\n".join(said), flush=True)
        results.append({"test": " ".join([name, *flags]), "passed": process.returncode == 0, "said": said})
    said = subprocess.run([exe, "info"], capture_output=True, text=True).stdout.splitlines()[0]
    record = {"command": "python3 tests/interop/record.py", "date": datetime.date.today().isoformat(), "linnet": said.split(maxsplit=1)[1],
              "python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}", "tests": results}
    pathlib.Path(target).write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(not all(result["passed"] for result in results))


main(*sys.argv[1:])
