#!/usr/bin/env python3
"""Checks who includes whom (docs/DESIGN.md, "Folders"). `--self-test` shows that each rule can fail."""
import pathlib
import re
import sys
import tempfile

BASE = r"linnet/(error|text|registry|threads)\.h|src/core/(file|folder|json|digest|cgroup)\.h"
CORE = BASE + r"|linnet/(tensor|pool|backend|tape|param|config|dataset|safetensors)\.h|kernels/(hd|step|rng|optim|update|augment|pointwise)\.h"
NET = CORE + r"|linnet/(ops|layers|model)\.h"
# The first rule whose pattern fits a file names the project's headers that it may include, besides its own folder's.
LAYERS = [
    (r"kernels/(exec_|shared_backend)", r"kernels/.*|linnet/(backend|threads)\.h"),
    (r"kernels/", r"kernels/(?!exec_|shared_backend).*"),
    (r"include/linnet/(error|text|registry|threads|config|dataset|safetensors|schedule)\.h", BASE + r"|linnet/config\.h"),
    (r"include/linnet/(tensor|pool|backend|tape|param)\.h|src/core/", CORE),
    (r"include/linnet/(ops|layers|model)\.h|models/", NET),
    (r"src/ops/", CORE + r"|linnet/(ops|layers)\.h"),
    (r"data/", BASE + r"|linnet/dataset\.h|kernels/rng\.h"),
    (r"src/backend/", BASE + r"|linnet/(tensor|backend)\.h|kernels/.*|src/backend/.*"),
    (r"src/train/onnx\.cpp", r"linnet/.*|src/(core|train)/.*|proto/onnx\.pb\.h"),
    (r"src/train/tensorboard\.cpp", r"linnet/.*|proto/tensorboard\.pb\.h"),
    (r"include/linnet/|src/train/", r"linnet/.*|src/(core|train)/.*|kernels/(rng|optim|update)\.h"),
    (r"src/report/", r"linnet/.*|src/(core|report)/.*|src/train/run_(files|lock|log)\.h"),
    (r"src/lab/", r"linnet/.*|src/(core|lab)/.*|src/report/plot\.h|kernels/(augment|rng|optim|update)\.h"),
    (r"src/cli/", r"linnet/.*|src/(core|report|lab)/.*|src/backend/backends\.h|src/train/run_(lock|log)\.h"),
]
# A library's headers stay in the files that wrap it. `kernels/` is read by nvcc as well, so it includes next to nothing.
LIBRARIES = [
    (r"(cuda|cudnn|cublas|cub/|nv)", r"src/backend/cuda/|kernels/exec_cuda\.cuh"),
    (r"(dnnl|oneapi/dnnl)", r"src/backend/cpu/"),
    (r"omp\.h", r"src/backend/cpu/convolution\.cpp"),
    (r"toml\+\+", r"src/train/(config|toml_scan)\.cpp"),
    (r"CLI/", r"src/cli/"),
    (r"curl/", r"data/download\.cpp"),
    (r"openssl/", r"src/core/digest\.cpp"),
    (r"archive", r"data/cifar\.cpp"),
    (r"zlib", r"data/(cifar|image_container)\.cpp"),
    (r"stb/stb_image_resize", r"data/image_folder\.cpp"),
    (r"stb/stb_image_write", r"data/png\.cpp"),
    (r"stb/stb_image\.h", r"data/image\.cpp"),
    (r"boost/math", r"src/report/statistics\.cpp"),
    (r"seccomp", r"data/image_sandbox\.cpp"),
    (r"(boost/crc)", r"src/train/tensorboard\.cpp"),
    (r"gtest", r"tests/"),
    (r"(?!(cmath|cstdint|variant)$)", r"(?!kernels/)|kernels/(exec_|shared_backend)"),
]


def problems(root):
    files = [f for top in ("include", "kernels", "src", "models", "data") for f in sorted((root / top).rglob("*"))]
    for path in (f for f in files if f.suffix in (".h", ".cpp", ".cuh", ".cu")):
        name = path.relative_to(root).as_posix()
        for number, line in enumerate(path.read_text().splitlines(), 1):
            include = re.match(r'\s*#\s*include\s*([<"])([^>"]+)', line)
            if not include:
                continue
            kind, header = include.groups()
            if kind == '"' and ("/" in header or not (path.parent / header).exists()):  # a sibling needs no leave
                allowed = next((rule for pattern, rule in LAYERS if re.match(pattern, name)), ".*")
                if not re.fullmatch(allowed, header):
                    yield f'{name}:{number}: "{header}" belongs to a layer that this file may not see'
            elif kind == "<":
                for library, where in LIBRARIES:
                    if re.match(library, header) and not re.match(where, name):
                        yield f"{name}:{number}: <{header}> is allowed only in {where}"


def self_test():
    bad = {
        "kernels/a.h": '#include "linnet/tensor.h"', "kernels/b.h": "#include <vector>",
        "include/linnet/error.h": '#include "linnet/tensor.h"', "include/linnet/tape.h": '#include "linnet/ops.h"',
        "src/core/tape.cpp": '#include "linnet/trainer.h"', "src/core/pool.cpp": '#include "../train/toml_scan.h"',
        "src/ops/conv.cpp": '#include "linnet/model.h"', "models/x.cpp": '#include "linnet/trainer.h"',
        "data/x.cpp": '#include "linnet/backend.h"', "src/backend/cpu/x.cpp": '#include "linnet/ops.h"',
        "src/train/x.cpp": '#include "src/backend/backends.h"', "src/train/y.cpp": "#include <dnnl.hpp>",
        "src/cli/x.cpp": '#include "src/backend/cpu/conv3x3.h"', "src/ops/x.cpp": "#include <cuda_runtime.h>",
        "src/ops/y.cpp": "#include <toml++/toml.h>",
    }
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, text in bad.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("#include <cmath>\n" + text + "\n")
        found = {line.split(":")[0] for line in problems(root)}
    missed = set(bad) - found
    print(f"check_layers: {len(found)} of {len(bad)} bad includes found" + "".join(f"\n  missed: {m}" for m in sorted(missed)))
    return bool(missed)


if __name__ == "__main__":
    if sys.argv[1:] == ["--self-test"]:
        sys.exit(self_test())
    found = list(problems(pathlib.Path(__file__).resolve().parent.parent))
    print("\n".join(found) or "check_layers: every include keeps to its layer")
    sys.exit(bool(found))
