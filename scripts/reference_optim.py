#!/usr/bin/env python3
"""Writes tests/golden/optimizers_torch.json and optimizers_keras.json for tests/optim_reference_test.cpp: what PyTorch's
and Keras' own optimizers do in float64 in 100 steps, for every option that they have.

    scripts/reference_optim.py torch      (PyTorch 1.13 or later)
    scripts/reference_optim.py muon       (PyTorch 2.9 or later: tests/golden/muon.json, for tests/muon_test.cpp)
    scripts/reference_optim.py keras      (Keras 3 with its numpy backend: KERAS_BACKEND=numpy, needs jax and scipy too)

A case is Linnet's [optimizer] keys and the weights after some of the steps. All cases share first weights, gradients
and the learning-rate factors: 1, from step 51 on 1/2.
"""
import json
import math
import os
import pathlib
import random
import sys

STEPS, SHOWN = 100, [1, 2, 3, 4, 5, 6, 7, 10, 50, 51, 52, 100]
random.seed(1)
W0 = [round(random.uniform(-1, 1), 3) for _ in range(6)]
SCALES = [1, 1, 0.1, 0.01, 1, 5]  # the last but one: mostly zero, like the gradient of a rare feature
G = [[round(random.gauss(0.3, 1) * s, 4) if k != 4 or t % 7 == 2 else 0.0 for k, s in enumerate(SCALES)]
     for t in range(STEPS)]


def factor(step):
    return 1 if step <= 50 else 0.5


def run(update, weights):
    """update(gradient, lr factor) changes what weights() reads."""
    shown = []
    for step in range(1, STEPS + 1):
        update(G[step - 1], factor(step))
        if step in SHOWN:
            shown.append(weights())
    return shown


def torch_cases():
    import torch

    class NAdam(torch.optim.Optimizer):
        """torch.optim.NAdam as of PyTorch 2: 1.13 multiplies by mu_t twice in the second product."""

        def __init__(self, params, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, momentum_decay=4e-3,
                     decoupled_weight_decay=False):
            super().__init__(params, dict(lr=lr))
            self.set = betas, eps, weight_decay, momentum_decay, decoupled_weight_decay
            self.t, self.m, self.v, self.product = 0, 0, 0, 1

        def step(self):
            (b1, b2), eps, decay, psi, decoupled = self.set
            p, lr = self.param_groups[0]["params"][0], self.param_groups[0]["lr"]
            self.t += 1
            g = p.grad
            if decoupled:
                p.data.mul_(1 - lr * decay)
            else:
                g = g + decay * p.data
            mu, following = (b1 * (1 - 0.5 * 0.96 ** (t * psi)) for t in (self.t, self.t + 1))
            self.product *= mu
            self.m = b1 * self.m + (1 - b1) * g
            self.v = b2 * self.v + (1 - b2) * g * g
            root = (self.v / (1 - b2**self.t)).sqrt() + eps
            p.data -= lr * (1 - mu) / (1 - self.product) * g / root
            p.data -= lr * following / (1 - self.product * following) * self.m / root

    class RAdamW(torch.optim.RAdam):
        """torch.optim.RAdam(decoupled_weight_decay=True), which 1.13 does not have."""

        def __init__(self, params, weight_decay=0, **more):
            super().__init__(params, **more)
            self.decay = weight_decay

        def step(self):
            group = self.param_groups[0]
            group["params"][0].data.mul_(1 - group["lr"] * self.decay)
            super().step()

    # Linnet's name and form, PyTorch's class, the options that both have.
    sgd, adagrad, rmsprop = torch.optim.SGD, torch.optim.Adagrad, torch.optim.RMSprop
    adam, adamw, radam = torch.optim.Adam, torch.optim.AdamW, torch.optim.RAdam
    both = [
        ("sgd", sgd, [{}, {"weight_decay": 0.02}, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.3},
                      {"momentum": 0.9, "nesterov": True}, {"momentum": 0.8, "weight_decay": 0.02},
                      {"momentum": 0.9, "nesterov": True, "weight_decay": 0.02},
                      {"momentum": 0.9, "dampening": 0.9, "weight_decay": 0.02}]),
        ("adagrad", adagrad, [{}, {"lr_decay": 0.05}, {"initial_accumulator_value": 0.1}, {"weight_decay": 0.02},
                              {"eps": 1e-3},
                              {"lr_decay": 0.01, "initial_accumulator_value": 0.5, "weight_decay": 0.01}]),
        ("rmsprop", rmsprop, [{}, {"alpha": 0.9}, {"centered": True}, {"momentum": 0.9}, {"weight_decay": 0.02},
                              {"eps": 1e-3}, {"centered": True, "momentum": 0.9},
                              {"centered": True, "momentum": 0.5, "weight_decay": 0.02, "alpha": 0.95}]),
        ("adam", adam, [{}, {"betas": [0.8, 0.95]}, {"eps": 1e-3}, {"weight_decay": 0.02}, {"amsgrad": True},
                        {"amsgrad": True, "weight_decay": 0.02, "betas": [0.5, 0.9]}]),
        ("adamw", adamw, [{}, {"weight_decay": 0.2}, {"amsgrad": True, "betas": [0.5, 0.9]}, {"eps": 1e-3}]),
        ("nadam", NAdam, [{}, {"momentum_decay": 0.1}, {"betas": [0.8, 0.95]}, {"weight_decay": 0.02}, {"eps": 1e-3}]),
        ("nadam:decoupled", lambda p, **o: NAdam(p, decoupled_weight_decay=True, **o), [{"weight_decay": 0.2}]),
        ("radam", radam, [{}, {"betas": [0.8, 0.95]}, {"weight_decay": 0.02}, {"eps": 1e-3}]),
        ("radam:decoupled", RAdamW, [{"weight_decay": 0.2}]),
    ]
    cases = []
    for name, make, options in both:
        for option in options:
            for lr in (None, 0.03):
                w = torch.nn.Parameter(torch.tensor(W0, dtype=torch.float64))
                given = dict(option, lr=lr) if lr else option
                if name == "sgd" and not lr:  # PyTorch 1.13 has no default lr for it
                    given = dict(option, lr=1e-3)
                o = make([w], **given)
                base = o.param_groups[0]["lr"]

                def update(g, f):
                    w.grad = torch.tensor(g, dtype=torch.float64)
                    o.param_groups[0]["lr"] = base * f
                    o.step()

                keys = dict(zip(("name", "form"), name.split(":")), **(dict(option, lr=lr) if lr else option))
                cases.append({"settings": keys, "w": run(update, lambda: w.detach().tolist())})
    return cases, "PyTorch " + torch.__version__


def keras_cases():
    os.environ["KERAS_BACKEND"] = "numpy"
    import keras
    import numpy as np

    keras.backend.set_floatx("float64")
    o = keras.optimizers
    renamed = {"lr": "learning_rate", "alpha": "rho", "eps": "epsilon"}
    both = [
        ("sgd", o.SGD, [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True},
                        {"momentum": 0.9, "weight_decay": 0.02}]),
        ("adagrad", o.Adagrad, [{}, {"initial_accumulator_value": 0.5}, {"eps": 1e-3}, {"weight_decay": 0.02}]),
        ("rmsprop", o.RMSprop, [{}, {"alpha": 0.99}, {"centered": True}, {"momentum": 0.9}, {"eps": 1e-3},
                                {"centered": True, "momentum": 0.9, "weight_decay": 0.02}]),
        ("adam", o.Adam, [{}, {"betas": [0.8, 0.95]}, {"amsgrad": True, "betas": [0.5, 0.9]}, {"eps": 1e-3},
                          {"weight_decay": 0.02}]),
        ("adamw", o.AdamW, [{}, {"weight_decay": 0.2}]),
        ("nadam", o.Nadam, [{}, {"weight_decay": 0.02}, {"eps": 1e-3}]),
        ("lion", o.Lion, [{}, {"betas": [0.95, 0.98], "weight_decay": 0.02}]),
    ]
    cases = []
    for name, make, options in both:
        for option in options:
            for lr in (None, 0.03):
                given = {renamed.get(k, k): v for k, v in option.items() if k != "betas"}
                given.update(zip(("beta_1", "beta_2"), option.get("betas", [])))
                if lr:
                    given["learning_rate"] = lr
                w = keras.Variable(np.array(W0), dtype="float64")
                optimizer = make(**given)
                optimizer.build([w])
                base = float(optimizer.get_config()["learning_rate"])
                base = lr or round(base, 6)  # Keras keeps it as a float32

                def update(g, f):
                    optimizer._learning_rate = keras.Variable(base * f, dtype="float64")
                    optimizer.apply([np.array(g)], [w])

                keys = dict({"name": name, "preset": "keras"}, **(dict(option, lr=lr) if lr else option))
                cases.append({"settings": keys, "w": run(update, lambda: w.numpy().tolist())})
    return cases, "Keras " + keras.__version__


def muon():
    """torch.optim.Muon, its Newton-Schulz iteration in float64 instead of bfloat16. Gradients and first weights are the
    formulas below, the same in the test."""
    import inspect

    import torch
    import torch.optim._muon as module

    source = inspect.getsource(module._zeropower_via_newtonschulz)
    assert "torch.bfloat16" in source
    exec(source.replace("torch.bfloat16", "torch.float64"), module.__dict__)
    cases = []
    for rows, columns, options in [(6, 4, {}), (4, 6, {}), (5, 5, {"nesterov": False}),
                                   (8, 3, {"momentum": 0.9, "weight_decay": 0, "ns_steps": 3})]:
        n = rows * columns
        w = torch.tensor([math.cos(i) for i in range(n)], dtype=torch.float64).reshape(rows, columns).requires_grad_()
        optimizer = torch.optim.Muon([w], lr=0.02, **options)
        shown = []
        for step in range(1, STEPS + 1):
            w.grad = torch.tensor([math.sin(0.7 * i * i + 1.3 * step) for i in range(n)],
                                  dtype=torch.float64).reshape(rows, columns)
            optimizer.step()
            if step in SHOWN:
                shown.append(w.detach().flatten().tolist())
        cases.append({"rows": rows, "columns": columns, "options": options, "w": shown})
    head = {"made_by": "PyTorch " + torch.__version__, "lr": 0.02, "shown": SHOWN}
    path = pathlib.Path(__file__).parent.parent / "tests" / "golden" / "muon.json"
    path.write_text(json.dumps(head)[:-1] + ', "cases": [\n' + ",\n".join(json.dumps(c) for c in cases) + "\n]}\n")


if __name__ == "__main__":
    which = sys.argv[1]
    if which == "muon":
        sys.exit(muon())
    cases, made_by = torch_cases() if which == "torch" else keras_cases()
    path = pathlib.Path(__file__).parent.parent / "tests" / "golden" / f"optimizers_{which}.json"
    head = {"made_by": made_by, "w0": W0, "g": G, "lr_factor": [factor(t) for t in range(1, STEPS + 1)], "shown": SHOWN}
    lines = ",\n".join(json.dumps(case) for case in cases)
    path.write_text(json.dumps(head)[:-1] + ',\n"cases": [\n' + lines + "\n]}\n")
    print(f"{path}: {len(cases)} cases, {made_by}")
