#!/usr/bin/env python3
"""Writes tests/golden/statistics.json: SciPy's and statsmodels' numbers for recorded test accuracies and for awkward cases.
  pip install scipy statsmodels && scripts/reference_stats.py > tests/golden/statistics.json"""
import json

import numpy as np
import scipy
import statsmodels
from scipy import stats
from scipy.integrate import quad
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

# Test accuracies by seed 0, 1, 2, ...: RECORDED are those of README's sweep (`linnet sweep configs/convnet/{sgd,momentum,adamw}.toml
# --seeds 0-2 --epochs 1`, CIFAR-10; commit ae74749, 2026-11-22), the others are made up.
RECORDED = {
    "sgd": [0.5125, 0.525, 0.5131],
    "momentum": [0.6398, 0.6258, 0.6241],
    "adamw": [0.627, 0.6138, 0.6219],
}
CASES = {
    **RECORDED,
    "five": [0.9121, 0.9098, 0.9134, 0.9107, 0.9115],
    "five_other": [0.9080, 0.9071, 0.9088, 0.9085, 0.9069],
    "five_close": [0.9120, 0.9101, 0.9130, 0.9110, 0.9112],
    "two": [0.41, 0.45],
    "two_other": [0.44, 0.40],
    "wild": [0.1, 0.9, 0.3, 0.72, 0.55, 0.61, 0.48, 0.2],
    "tight": [0.5 + 1e-7 * k for k in range(8)],
}


def spread(x):
    low, high = stats.t.interval(0.95, len(x) - 1, loc=np.mean(x), scale=stats.sem(x))
    return {"mean": np.mean(x), "sd": np.std(x, ddof=1), "half": (high - low) / 2}


def pairs():
    names = list(CASES)
    for i, a in enumerate(names):
        for b in names[i + 1:]:
            if len(CASES[a]) == len(CASES[b]):
                d = np.subtract(CASES[a], CASES[b])
                yield {"a": a, "b": b, **spread(d), "p": stats.ttest_rel(CASES[a], CASES[b]).pvalue}


def needed(effect, alpha, power):
    """The first n with that power, by quadrature: statsmodels asks SciPy's non-central t, which errs in the far tail."""
    def reached(n):
        limit, k = stats.t.isf(alpha / 2, n - 1), np.sqrt(n - 1)
        return quad(lambda s: stats.norm.cdf(effect * np.sqrt(n) - limit * s) * stats.chi.pdf(s * k, n - 1) * k, 0, 20,
                    points=[0.5, 1, 1.5], limit=200)[0]
    n = 2
    while reached(n) < power:
        n += 1
    if n > 5:  # where SciPy's is good, too
        assert n == int(np.ceil(TTestPower().solve_power(effect, power=power, alpha=alpha) - 1e-9)), (effect, alpha, power)
    return n


tested = list(pairs())
families = [[t["p"] for t in tested], [0.01, 0.04, 0.03, 0.005], [0.2], [0.04, 0.04, 0.04], [1e-12, 0.9, 0.5, 0.02, 0.011, 0.049]]
json.dump({
    "made_with": {"scipy": scipy.__version__, "statsmodels": statsmodels.__version__},
    "samples": {name: {"values": x, **spread(x)} for name, x in CASES.items()},
    "pairs": tested,
    "holm": [{"p": p, "adjusted": list(multipletests(p, method="holm")[1])} for p in families],
    "pairs_needed": [{"mean": m, "sd": s, "alpha": a, "power": w, "n": needed(m / s, a, w)}
                     for m, s in ((0.004, 0.005), (0.001, 0.003), (0.02, 0.004), (0.0003, 0.004)) for a in (0.05, 0.05 / 10)
                     for w in (0.8, 0.9)],
    "wilson": [{"right": r, "n": n, "low": low, "high": high} for r, n in ((9200, 10000), (0, 400), (400, 400), (59, 400), (5000, 10000))
               for low, high in [proportion_confint(r, n, method="wilson")]],
}, __import__("sys").stdout, indent=1, default=float)
print()
