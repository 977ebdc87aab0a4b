"""The ONNX export: ONNX's own checker takes it, and onnxruntime gives the classes and logits of `linnet eval` on 1,000
pictures.    python3 tests/interop/onnx_export.py build/dev/linnet [--all]

--all: every model that `linnet list models` names, which takes minutes."""
import json
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
    if model in ("plain56", "plain110", "resnet110"):  # deep: fewer steps, and small ones
        config.write_text(config.read_text().replace("epochs = 20", "epochs = 4").replace("lr = 0.02", "lr = 0.001"))
    run = folder / f"{model}{extra[-3:-2]}"
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
        assert norms == 0 or "--fold-bn" not in flags, norms
        assert norms > 0 or flags or run.name in ("mlp", "linear", "convnet_nobn"), norms
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        scaled = (pictures.astype(np.float64) / 255).transpose(0, 3, 1, 2).astype(np.float32)
        x = scaled if "--normalise" in flags else common.normalised(pictures)
        logits = np.concatenate([session.run(["logits"], {"input": part})[0] for part in np.array_split(x, 3)])
        single = session.run(["logits"], {"input": x[:1]})[0]
        error, classes = common.worst(logits, expected), (logits.argmax(1) == expected.argmax(1)).mean()
        print(f"{run.name} {' '.join(flags) or '(plain)'}: {len(x)} pictures, logits differ by {error:.1e}, same class {classes:.1%}")
        assert error < 1e-4 and classes == 1 and common.worst(single, expected[:1]) < 1e-4


def main(exe, every):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        pictures = common.make_folder(folder / "data", 1000)
        models = ["resnet20", "convnet", "mlp"]
        if every:
            models = [entry["name"] for entry in json.loads(common.linnet(exe, "list", "models", "--json"))]
        for model in models:
            for extra in ("", "shortcut = 'B'\n") if model.startswith("resnet") else ("",):
                check(exe, folder, train(exe, folder, model, extra), pictures)


print(f"ONNX {onnx.__version__}, onnxruntime {onnxruntime.__version__}")
main(sys.argv[1], "--all" in sys.argv)
