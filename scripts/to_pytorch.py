#!/usr/bin/env python3
"""Linnet's weights (model.safetensors of a run) as a PyTorch state dict.

    scripts/to_pytorch.py runs/NAME/model.safetensors resnet20.pth             # last layer `linear`
    scripts/to_pytorch.py model.safetensors resnet20.pth --head fc             # last layer `fc`

    model.load_state_dict(torch.load("resnet20.pth", weights_only=True))

scripts/torch_resnet.py has the model. The bits are those of the file. Needs torch and safetensors from PyPI.
"""
import argparse
import collections
import pathlib
import sys

import torch
from safetensors.torch import load_file

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("source")
parser.add_argument("target")
parser.add_argument("--head", default="linear", help="name of the last layer in PyTorch")
options = parser.parse_args()
if pathlib.Path(options.target).exists():
    sys.exit(f"{options.target} exists; remove it or choose another name")
state = collections.OrderedDict()
for name, tensor in sorted(load_file(options.source).items()):
    state[name.replace("linear.", options.head + ".", 1) if name.startswith("linear.") else name] = tensor
    if name.endswith(".running_var"):  # strict loading asks for it; it counts nothing that evaluation needs
        state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
torch.save(state, options.target)
print(f"{options.target}: {len(state)} tensors")
