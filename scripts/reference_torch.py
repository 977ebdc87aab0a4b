#!/usr/bin/env python3
"""Writes tests/golden/*.safetensors: what PyTorch computes in float64, for tests/pytorch_test.cpp to compare with; and
schedules.json for tests/schedule_test.cpp.

    scripts/reference_torch.py            (needs PyTorch and NumPy; takes minutes: float64)

Inputs and first weights are not stored: both sides make them from kernels/rng.h's random4. Every input is a number that
float32 holds exactly, so float64 here and float32 there start from the same.
"""
import argparse
import copy
import itertools
import json
import math
import pathlib
import struct

import numpy as np
import torch
import torch.nn.functional as F

from torch_resnet import ResNet

SEED, TEST = 1, 7  # as in random4(1, Draw::test, ...)


def random_word(items, epoch, stream):
    """random4(SEED, Draw::test, item, epoch, stream).v[0] for an array of items: Philox4x32-10."""
    low = np.uint64(0xFFFFFFFF)
    c = [items.astype(np.uint64), np.zeros_like(items, np.uint64), np.full_like(items, epoch, np.uint64),
         np.full_like(items, stream, np.uint64)]
    k0, k1 = SEED, TEST * 0x9E3779B9 & 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k0), p1 & low, (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k1), p0 & low]
        k0, k1 = k0 + 0x9E3779B9 & 0xFFFFFFFF, k1 + 0xBB67AE85 & 0xFFFFFFFF
    return c[0].astype(np.uint32)


def stream_of(name):
    """FNV-1a: a name's random numbers are its own."""
    h = 0x811C9DC5
    for byte in name.encode():
        h = (h ^ byte) * 0x01000193 & 0xFFFFFFFF
    return h


def words(name, count, epoch=0):
    return random_word(np.arange(count), epoch, stream_of(name))


def draw(name, shape, scale=1.0, offset=0.0, epoch=0):
    """offset + scale * uniform in [-1, 1), rounded to float32. With an offset, scale is a power of two: one rounding."""
    u = (words(name, math.prod(shape), epoch) >> np.uint32(8)).astype(np.float64) * 2.0**-23 - 1
    return torch.from_numpy((offset + scale * u).astype(np.float32).reshape(shape))


def labels(name, count, classes, epoch=0):
    return torch.from_numpy(((words(name, count, epoch).astype(np.uint64) * np.uint64(classes)) >> np.uint64(32)).astype(np.int64))


SAMPLES, PROJECTIONS = 64, 8


def fingerprint(name, t):
    """64 elements (all, if there are no more), 8 sums under random signs, the L2 norm, the largest magnitude.

    An error e in whatever element changes a sum under random signs by about |e|: none can hide.
    """
    v = t.detach().double().reshape(-1).numpy()
    at = np.arange(v.size)
    if v.size > SAMPLES:
        at = ((words("at " + name, SAMPLES).astype(np.uint64) * np.uint64(v.size)) >> np.uint64(32)).astype(np.int64)
    bits = words("signs", v.size)
    sums = [np.dot(v, np.where(bits >> np.uint32(k) & np.uint32(1), 1.0, -1.0)) for k in range(PROJECTIONS)]
    return np.concatenate([v[at], sums, [np.linalg.norm(v), np.abs(v).max()]])


def write_safetensors(path, tensors, metadata):
    header, at = {"__metadata__": metadata}, 0
    for name in sorted(tensors):
        t = np.asarray(tensors[name], dtype="<f8")
        header[name] = {"dtype": "F64", "shape": list(t.shape), "data_offsets": [at, at + t.nbytes]}
        at += t.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            f.write(np.ascontiguousarray(tensors[name], dtype="<f8").tobytes())
    print(f"{path}: {len(tensors)} tensors, {path.stat().st_size} bytes")


# ---- ResNet-20 ----
#
# ReLU's slope jumps at 0. A batch has 24 million ReLU inputs; some ten of them lie so near 0 that float32's rounding
# changes their sign, and each one that flips changes a gradient by 1e-3: PyTorch's float32 is that far from its own
# float64. A relative error of 1e-4 can only be asked for where nothing flips. So each image occurs 64 times in the batch of
# 128 (with different labels), and batches are tried until none has a ReLU input within MARGIN of 0, nor one that changes
# its sign when every convolution errs as Winograd's do in float32: by NOISE (a deviation) of its largest output. Where that
# is, float32 errs by 1e-6, with Winograd convolutions by 5e-6.

BATCH, DISTINCT, STEPS, MARGIN, NOISE, DRAWS = 128, 2, 10, 2e-5, 1e-6, 4


def images(batch):
    """In the range of normalised photographs, with coarse and fine structure. Image n of the batch is n % DISTINCT."""
    coarse = draw("coarse", (DISTINCT, 3, 4, 4), epoch=batch)
    return coarse.repeat_interleave(8, 2).repeat_interleave(8, 3) + draw("fine", (DISTINCT, 3, 32, 32), epoch=batch)


def first_weights(model):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith("linear"):
                p.copy_(draw(name, p.shape, 0.125))
            elif p.dim() > 1:
                p.copy_(draw(name, p.shape, math.sqrt(6 / p[0].numel())))
            else:
                p.copy_(draw(name, p.shape, 0.25, 1.0 if name.endswith("weight") else 0.0))


class NearZero(Exception):
    pass


def clear_batch(model, first):
    """The first batch from `first` on without a ReLU input near 0."""
    model = copy.deepcopy(model)
    noise, signs = torch.Generator().manual_seed(SEED), []
    noisy = False

    def look(_, inputs):
        if noisy:
            if not torch.equal(inputs[0] > 0, signs[look.at]):
                raise NearZero
            look.at += 1
            return
        if inputs[0].abs().min() < MARGIN:
            raise NearZero
        signs.append(inputs[0] > 0)

    def err(_, __, output):
        if noisy:
            return output + NOISE * output.abs().max() * torch.randn(output.shape, dtype=output.dtype, generator=noise)

    for module in model.modules():
        if isinstance(module, torch.nn.ReLU):
            module.register_forward_pre_hook(look)
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(err)
    for batch in itertools.count(first):
        try:
            with torch.no_grad():
                x = images(batch).double()
                noisy = False
                signs.clear()
                model(x)
                noisy = True
                for _ in range(DRAWS):
                    look.at = 0
                    model(x)
            return batch
        except NearZero:
            pass


def train(option, lr, dtype, batches=None):
    """Everything the test compares: {name: tensor}. batches: their numbers; searched for if None."""
    model = ResNet(20, option).to(dtype)
    first_weights(model)
    sgd = torch.optim.SGD(model.parameters(), lr, momentum=0.9, nesterov=True, weight_decay=1e-4)
    out, losses, used = {}, [], [-1]
    for step in range(STEPS):
        batch = batches[step] if batches else clear_batch(model, used[-1] + 1)
        used.append(batch)
        sgd.zero_grad()
        x = images(batch).to(dtype).repeat(BATCH // DISTINCT, 1, 1, 1)
        loss = F.cross_entropy(model(x), labels("labels", BATCH, 10, batch))
        loss.backward()
        losses.append(float(loss.detach()))
        if step == 0:
            out.update({"gradient " + n: p.grad.clone() for n, p in model.named_parameters()})
            out.update({"first " + n: b.clone() for n, b in model.named_buffers() if "running" in n})
        sgd.step()
    out.update({"last " + n: t.clone() for n, t in model.state_dict().items() if "tracked" not in n})
    out["losses"] = torch.tensor(losses, dtype=torch.float64)
    return out, used[1:]


def distance(a, b):
    """Relative error as the test has it: largest difference over largest magnitude."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def float32_error(option, lr, truth, batches):
    """How far PyTorch's own float32 is from `truth`, at worst: of the gradients, first and last values, losses."""
    worst = {}
    for name, t in train(option, lr, torch.float32, batches)[0].items():
        kind = name.split()[0]
        worst[kind] = max(worst.get(kind, 0), distance(t, truth[name]))
    return {kind: f"{error:.1e}" for kind, error in worst.items()}


def resnet_golden(folder, option, lr):
    truth, batches = train(option, lr, torch.float64)
    error = float32_error(option, lr, truth, batches)
    print(f"option {option}, lr {lr}, batches {batches}: PyTorch float32's error is {error}", flush=True)
    tensors = {n: t.numpy() if n == "losses" else fingerprint(n, t) for n, t in truth.items()}
    tensors |= {"batches": np.array(batches), "lr": np.array([lr])}
    write_safetensors(folder / f"resnet20_{option.lower()}.safetensors", tensors,
                      {"torch": torch.__version__, **{"float32 error, " + k: e for k, e in error.items()}})


# ---- Single operations, and rules over many steps ----

OPS = {}  # "case.output": array


def record(case, f, inputs, params=()):
    """y = f(*inputs, *params), and the gradients of sum(dy * y): "case.y", "case.dx0", ..., "case.dw0", ..."""
    leaves = [t.double().requires_grad_() for t in (*inputs, *params)]
    y = f(*leaves)
    y.backward(draw(case + " dy", y.shape).double())
    OPS[case + ".y"] = y.detach().numpy()
    for i, leaf in enumerate(leaves):
        name = f"dx{i}" if i < len(inputs) else f"dw{i - len(inputs)}"
        OPS[f"{case}.{name}"] = leaf.grad.numpy()


def operations():
    for name, f in {"relu": F.relu, "leaky_relu": lambda x: F.leaky_relu(x, 0.125), "sigmoid": torch.sigmoid,
                    "tanh": torch.tanh, "silu": F.silu, "gelu": F.gelu}.items():
        record(name, f, [draw(name + " x", (20, 15), 8)])
    for h, w, stride, pad in [(2, 2, 2, 0), (3, 3, 2, 1), (3, 2, 1, 1)]:
        window, x = f"{h}{w}{stride}{pad}", draw("pool x", (2, 3, 7, 9))
        record("max_pool " + window, lambda x: F.max_pool2d(x, (h, w), stride, pad), [x])
        record("avg_pool " + window, lambda x: F.avg_pool2d(x, (h, w), stride, pad), [x])
    record("global_avg_pool", lambda x: x.mean(dim=(2, 3)), [draw("pool x", (2, 3, 7, 9))])
    for kernel, stride, pad in [(3, 1, 1), (3, 2, 1), (1, 2, 0), (5, 1, 2)]:
        record(f"conv2d {kernel}{stride}{pad}", lambda x, w: F.conv2d(x, w, None, stride, pad),
               [draw("conv x", (2, 5, 7, 6))], [draw("conv w", (4, 5, kernel, kernel))])
    record("linear", F.linear, [draw("linear x", (9, 13))], [draw("linear w", (5, 13)), draw("linear b", (5,))])
    x, scale, bias = draw("norm x", (3, 8, 5, 4), 4, 2), draw("norm scale", (8,), 1, 1), draw("norm bias", (8,))
    for groups in (1, 4, 8):
        record(f"group_norm {groups}", lambda x, s, b: F.group_norm(x, groups, s, b), [x], [scale, bias])
    record("layer_norm", lambda x, s, b: F.layer_norm(x, (8,), s, b), [draw("row x", (6, 8), 4, 2)], [scale, bias])
    mean, var = torch.zeros(8).double(), torch.ones(8).double()
    record("batch_norm", lambda x, s, b: F.batch_norm(x, mean, var, s, b, training=True), [x], [scale, bias])
    OPS["batch_norm.mean"], OPS["batch_norm.var"] = mean.numpy(), var.numpy()
    target = labels("targets", 16, 10)
    target[3] = -1
    for smoothing in (0, 0.125, 0.5):
        record(f"cross_entropy {smoothing:g}",
               lambda z: F.cross_entropy(z, target, ignore_index=-1, label_smoothing=smoothing).reshape(1),
               [draw("logits", (16, 10), 8)])
    record("mse_loss", lambda x: F.mse_loss(x, draw("mse target", (7, 5)).double()).reshape(1), [draw("mse x", (7, 5))])


SGD_STEPS, SGD_SIZE = 100, 32


def optimizers():
    for momentum, dampening, nesterov, decay in [(0, 0, False, 0), (0.9, 0, False, 0), (0.9, 0.5, False, 0.01),
                                                 (0.9, 0, True, 0.01), (0, 0, False, 0.1)]:
        w = draw("sgd w", (SGD_SIZE,)).double().requires_grad_()
        sgd = torch.optim.SGD([w], 0.05, momentum, dampening, decay, nesterov)
        path = []
        for step in range(SGD_STEPS):
            w.grad = draw("sgd g", (SGD_SIZE,), epoch=step).double()
            sgd.step()
            path.append(w.detach().clone())
        OPS[f"sgd {momentum:g} {dampening:g} {int(nesterov)} {decay:g}"] = torch.stack(path).numpy()

    for max_norm in (0.5, 100):
        w = torch.zeros(300).double().requires_grad_()
        w.grad = draw("clip g", (300,)).double()
        norm = torch.nn.utils.clip_grad_norm_([w], max_norm)
        OPS[f"clip {max_norm:g}"] = np.append(w.grad.numpy(), float(norm))


def schedules(path):
    """Learning rates as torch.optim.lr_scheduler gives them, and falls of ReduceLROnPlateau on random metrics."""
    rules = torch.optim.lr_scheduler
    lr = 0.1

    def optimizer():
        return torch.optim.SGD([torch.zeros(1).requires_grad_()], lr)

    def case(epochs, steps_per_epoch, make, **schedule):
        """Each step's rate; the rule is stepped once a step or, with interval = "epoch", once an epoch."""
        sgd = optimizer()
        rule, rates = make(sgd), []
        for step in range(epochs * steps_per_epoch):
            rates.append(sgd.param_groups[0]["lr"])
            sgd.step()
            if schedule["interval"] == "step" or step % steps_per_epoch == steps_per_epoch - 1:
                if step + 1 < epochs * steps_per_epoch:
                    rule.step()
        return {"schedule": schedule, "lr": lr, "epochs": epochs, "steps_per_epoch": steps_per_epoch, "rates": rates}

    cases = []
    for interval, epochs, per_epoch in [("step", 6, 10), ("epoch", 20, 3)]:
        tick, total = (per_epoch, 60) if interval == "step" else (1, 20)  # ticks an epoch, ticks in all
        period = total // 4 // tick
        cases += [
            case(epochs, per_epoch, make, interval=interval, **schedule) for make, schedule in [
                (lambda o: rules.StepLR(o, 2 * tick, 0.3), dict(name="step", step_size=2, gamma=0.3)),
                (lambda o: rules.MultiStepLR(o, [tick, 5 * tick], 0.2),
                 dict(name="multistep", milestones=[1, 5], gamma=0.2)),
                (lambda o: rules.ExponentialLR(o, 0.9**(1 / tick)), dict(name="exponential", gamma=0.9)),
                (lambda o: rules.CosineAnnealingLR(o, total, 0.001), dict(name="cosine", min_lr=0.001)),
                (lambda o: rules.CosineAnnealingWarmRestarts(o, period * tick, 1, 0.002),
                 dict(name="cosine", period=period, min_lr=0.002)),
                (lambda o: rules.CosineAnnealingWarmRestarts(o, period * tick, 2),
                 dict(name="cosine", period=period, period_factor=2)),
                (lambda o: rules.LinearLR(o, 1, 0.05, total), dict(name="linear", min_lr=0.005)),
                (lambda o: rules.PolynomialLR(o, total, 2.5), dict(name="polynomial", power=2.5)),
                (lambda o: rules.OneCycleLR(o, lr, total), dict(name="one_cycle")),
                (lambda o: rules.OneCycleLR(o, lr, total, pct_start=0.45, div_factor=10, final_div_factor=100),
                 dict(name="one_cycle", peak=0.45, div_factor=10, final_div_factor=100)),
            ]
        ]

    draws, plateaus = np.random.default_rng(0), []
    for n in range(16):
        metric = ["val/loss", "val/acc"][n % 2]
        schedule = dict(name="plateau", metric=metric, factor=float(draws.choice([0.1, 0.5])),
                        patience=int(draws.integers(0, 4)), threshold=float(draws.choice([0, 1e-4, 0.02])),
                        cooldown=int(draws.integers(0, 4)), min_lr=float(draws.choice([0, 1e-3])))
        trend = 0.02 * np.arange(60) * (1 if metric == "val/acc" else -1)
        metrics = np.round(2 + np.where(draws.random() < 0.5, trend, 0.5 * trend) + draws.normal(0, 0.15, 60), 2).tolist()
        sgd = optimizer()
        rule = rules.ReduceLROnPlateau(sgd, mode="max" if metric == "val/acc" else "min",
                                       **{k: schedule[k] for k in ("factor", "patience", "threshold", "cooldown", "min_lr")})
        rates = []
        for value in metrics:
            rule.step(value)
            rates.append(sgd.param_groups[0]["lr"])
        plateaus.append({"schedule": schedule, "lr": lr, "metrics": metrics, "rates": rates})
    with open(path, "w") as f:
        json.dump({"torch": torch.__version__, "rates": cases, "plateau": plateaus}, f, separators=(",", ":"))
        f.write("\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent.parent / "tests/golden")
    parser.add_argument("--lr", type=float, default=0.01,
                        help="of the ten ResNet-20 steps; at 0.1 they amplify rounding: float32's own error is above 1e-2")
    options = parser.parse_args()
    schedules(options.out / "schedules.json")
    operations()
    optimizers()
    write_safetensors(options.out / "operations.safetensors", OPS, {"torch": torch.__version__})
    for option in "AB":
        resnet_golden(options.out, option, options.lr)
