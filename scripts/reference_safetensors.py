#!/usr/bin/env python3
"""Writes tests/golden/reference.safetensors with the format's own library, for tests/safetensors_test.cpp to read.

    scripts/reference_safetensors.py      (needs NumPy, ml_dtypes and safetensors)
"""
import pathlib

import numpy as np
import safetensors
from ml_dtypes import bfloat16
from safetensors.numpy import save_file

PATH = pathlib.Path(__file__).parent.parent / "tests/golden/reference.safetensors"

save_file({
    "conv.weight": np.array([[1.5, -0.0, 0.1], [np.inf, -2.0**-149, 3e38]], np.float32),
    "half": np.array([1, -2.5, 65504, 2.0**-24], np.float16),
    "brain": np.array([1, -2.5, np.inf], bfloat16),
    "count": np.array([[-1], [2**62]], np.int64),
    "scalar": np.array(391, np.int64),
    "empty": np.zeros((0, 3), np.float32),
}, PATH, {"format": "pt", "note": 'snow: \u2603, quote: "'})
print(f"{PATH}: safetensors {safetensors.__version__}, {PATH.stat().st_size} bytes")
