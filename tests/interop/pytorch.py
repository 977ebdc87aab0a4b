"""Weights to and from PyTorch: the same logits for ResNet-20/32/56/110 with both shortcuts, the same bits after a round
trip, and the list where a file does not fit.    python3 tests/interop/pytorch.py build/dev/linnet"""
import pathlib
import sys
import tempfile

import common

common.need("torch", "safetensors", "numpy")
sys.path.insert(0, str(common.ROOT / "scripts"))
import numpy as np
import torch
from safetensors.numpy import load_file
from torch_resnet import ResNet

TOLERANCE = 1e-4


def random_model(depth, option):
    torch.manual_seed(depth)
    model = ResNet(depth, option)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
            torch.nn.init.normal_(module.running_mean, 0, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def as_found(state, depth, option):
    """The same weights under the names that models found elsewhere have."""
    if depth == 32:
        state = {name.replace("linear.", "fc."): t for name, t in state.items()}
    if depth == 56:
        state = {"module." + name: t for name, t in state.items()}
    if depth == 110:
        state = {"module." + name.replace("linear.", "fc.").replace(".shortcut.", ".downsample."): t for name, t in state.items()}
    best = 91.7 if int(torch.__version__.split(".")[0]) >= 2 else 91  # 1.x reads no float with weights_only
    return {"state_dict": state, "best_prec1": best} if option == "A" else state


def logits_of(model, pictures):
    """Through buffers and lists: a PyTorch built for another NumPy than the one here takes no arrays."""
    x = common.normalised(pictures)
    with torch.no_grad():
        return np.array(model(torch.frombuffer(bytearray(x.tobytes()), dtype=torch.float32).reshape(x.shape)).tolist())


def check_logits(exe, folder, pictures):
    for depth in (20, 32, 56, 110):
        for option in "AB":
            model = random_model(depth, option)
            name = folder / f"{depth}{option}"
            torch.save(as_found(model.state_dict(), depth, option), f"{name}.pth")
            common.script("from_pytorch.py", f"{name}.pth", f"{name}.safetensors")
            common.linnet(exe, "eval", f"{name}.safetensors", "--model", f"resnet{depth}", *common.STATS,
                          *common.folder_keys(folder / "data"), "--logits", f"{name}.logits")
            error = common.worst(load_file(f"{name}.logits")["logits"], logits_of(model, pictures))
            print(f"resnet{depth} {option}: logits differ by {error:.1e}")
            assert error < TOLERANCE


def check_round_trip(exe, folder, pictures):
    """Trained here, evaluated in PyTorch, saved there and read again: the same bits."""
    run = folder / "run"
    config = folder / "config.toml"
    for model in ("resnet20", "convnet", "mlp"):
        config.write_text(f"[model]\nname = '{model}'\n[data]\nname = 'synthetic'\nsamples = 200\nval = 20\n"
                          "[train]\nepochs = 1\nbatch_size = 30\n[optimizer]\nname = 'sgd'\nlr = 0.05\nmomentum = 0.9\n")
        run = folder / f"run-{model}"
        common.linnet(exe, "train", config, "-o", run)
        common.script("to_pytorch.py", run / "model.safetensors", run / "model.pth")
        common.script("from_pytorch.py", run / "model.pth", run / "again.safetensors")
        config.write_text(config.read_text().replace("epochs = 1", "epochs = 1\nseed = 5"))
        common.linnet(exe, "fork", run / "again.safetensors", config, "--epochs", "1", "-o", run / "fork", "--set",
                      "optimizer.lr=1e-30", "--set", "optimizer.momentum=0")
        first = load_file(run / "model.safetensors")
        again = load_file(next((run / "fork/checkpoints").glob("0*0")) / "model.safetensors")
        assert first.keys() == again.keys()
        for name in first:
            same = first[name].tobytes() == again[name].tobytes()
            assert same, name
        print(f"{model}: {len(first)} tensors, the same bits after Linnet -> PyTorch -> Linnet")
    model = ResNet(20, "A").eval()
    model.load_state_dict(torch.load(folder / "run-resnet20/model.pth", weights_only=True))
    stats = [line for line in (folder / "run-resnet20/config.toml").read_text().splitlines() if line.startswith(("mean", "std"))]
    mean, std = (",".join(v.strip() for v in line.split("=")[1].strip(" []").split(",")) for line in stats)
    common.linnet(exe, "eval", folder / "run-resnet20/model.safetensors", "--model", "resnet20", "--mean", mean, "--std", std,
                  *common.folder_keys(folder / "data"), "--logits", folder / "trained.logits")
    common.MEAN, common.STD = ([float(v) for v in text.split(",")] for text in (mean, std))
    error = common.worst(load_file(folder / "trained.logits")["logits"], logits_of(model, pictures))
    print(f"trained here, evaluated in PyTorch: logits differ by {error:.1e}")
    assert error < TOLERANCE


def check_flattened(exe, folder, pictures):
    """A linear layer behind flatten(): PyTorch's channel, height, width."""
    torch.manual_seed(3)
    layers = []
    for i, (inputs, outputs) in enumerate(((3, 32), (32, 64), (64, 128)), start=1):
        layers += [(f"conv{i}", torch.nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)), (f"bn{i}", torch.nn.BatchNorm2d(outputs)),
                   (f"relu{i}", torch.nn.ReLU()), (f"pool{i}", torch.nn.MaxPool2d(2))]
    from collections import OrderedDict
    model = torch.nn.Sequential(OrderedDict(layers + [("flatten", torch.nn.Flatten()), ("linear", torch.nn.Linear(2048, 10))])).eval()
    torch.save(model.state_dict(), folder / "convnet.pth")
    common.script("from_pytorch.py", folder / "convnet.pth", folder / "convnet.safetensors")
    common.linnet(exe, "eval", folder / "convnet.safetensors", "--model", "convnet", *common.STATS,
                  *common.folder_keys(folder / "data"), "--logits", folder / "convnet.logits")
    error = common.worst(load_file(folder / "convnet.logits")["logits"], logits_of(model, pictures))
    print(f"convnet: logits differ by {error:.1e}")
    assert error < TOLERANCE


def check_refusals(exe, folder):
    state = random_model(20, "A").state_dict()
    def refused(change, *expected):
        bad = dict(state)
        change(bad)
        torch.save(bad, folder / "bad.pth")
        (folder / "bad.safetensors").unlink(missing_ok=True)
        common.script("from_pytorch.py", folder / "bad.pth", folder / "bad.safetensors")
        text = common.linnet(exe, "eval", folder / "bad.safetensors", "--model", "resnet20", *common.STATS,
                             *common.folder_keys(folder / "data"), code=4)
        for part in expected:
            assert part in text, text
    refused(lambda s: s.pop("layer1.0.bn1.weight"), "'layer1.0.bn1.weight' is missing")
    refused(lambda s: s.update({"extra": torch.zeros(2)}), "'extra' is left over")
    refused(lambda s: s.update({"linear.weight": torch.zeros(100, 64), "conv1.weight": torch.zeros(16, 1, 3, 3)}),
            "'linear.weight': expected F32 [10,64], got F32 [100,64]", "'conv1.weight'", "2 of its tensors differ")
    (folder / "code.pth").write_bytes(b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.")
    assert "without running code" in common.script("from_pytorch.py", folder / "code.pth", folder / "code.safetensors", code=1)
    half = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    torch.save(half, folder / "half.pth")
    common.script("from_pytorch.py", folder / "half.pth", folder / "half.safetensors")
    print("refusals: each names what is missing, too many or of another shape")


def main(exe):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        pictures = common.make_folder(folder / "data", 20)
        check_logits(exe, folder, pictures)
        check_flattened(exe, folder, pictures)
        check_refusals(exe, folder)
        check_round_trip(exe, folder, pictures)


print(f"PyTorch {torch.__version__}")
main(sys.argv[1])
