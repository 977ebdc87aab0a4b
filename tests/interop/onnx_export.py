"""The ONNX export: ONNX's own checker takes it, and onnxruntime gives the classes and logits of `linnet eval` on 1,000
pictures.    python3 tests/interop/onnx_export.py build/dev/linnet"""
import pathlib
import sys
import tempfile

import common

common.need("onnx", "onnxruntime", "safetensors", "numpy")
import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import load_file


def train(exe, folder, model, extra=""):
    """A run with statistics of its own: two epochs on the pictures."""
    config = folder / f"{model}.toml"
    config.write_text(f"[model]\nname = '{model}'\n{extra}[data]\nname = 'folder'\npath = '{folder / 'data'}'\nval_share = 0\n"
                      f"mean = {list(common.MEAN)}\nstd = {list(common.STD)}\n"
                      "[train]\nepochs = 20\nprecision = 'f32'\nbatch_size = 10\n[augment]\ncrop_pad = 0\nflip = 'none'\n[optimizer]\nname = 'sgd'\nlr = 0.02\nmomentum = 0.9\n")
    run = folder / f"run-{model}-{len(extra)}"
    common.linnet(exe, "train", config, "-o", run)
    return run


def check(exe, folder, run, pictures):
    common.linnet(exe, "eval", run, "--logits", run / "logits")
    expected = load_file(run / "logits")["logits"]
    for flags in ([], ["--normalise"], ["--fold-bn"], ["--normalise", "--fold-bn"]):
        path = run / f"model{len(''.join(flags))}.onnx"
        common.linnet(exe, "export", run, "-o", path, *flags)
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert [o.version for o in model.opset_import] == [17]
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
        norms = sum(node.op_type == "BatchNormalization" for node in model.graph.node)
        assert (norms == 0) == ("--fold-bn" in flags or "mlp" in str(run)), norms
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        scaled = (pictures.astype(np.float64) / 255).transpose(0, 3, 1, 2).astype(np.float32)
        x = scaled if "--normalise" in flags else common.normalised(pictures)
        logits = np.concatenate([session.run(["logits"], {"input": part})[0] for part in np.array_split(x, 3)])
        single = session.run(["logits"], {"input": x[:1]})[0]
        error, classes = common.worst(logits, expected), (logits.argmax(1) == expected.argmax(1)).mean()
        print(f"{run.name} {' '.join(flags) or '(plain)'}: {len(x)} pictures, logits differ by {error:.1e}, same class {classes:.1%}")
        assert error < 1e-4 and classes == 1 and common.worst(single, expected[:1]) < 1e-4


def main(exe):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        pictures = common.make_folder(folder / "data", 1000)
        for model, extra in (("resnet20", ""), ("resnet20", "shortcut = 'B'\n"), ("convnet", ""), ("mlp", "")):
            check(exe, folder, train(exe, folder, model, extra), pictures)


main(sys.argv[1])
