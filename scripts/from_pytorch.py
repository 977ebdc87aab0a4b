#!/usr/bin/env python3
"""A PyTorch checkpoint (.pth, .th, .pt), or a .safetensors file of half precision, as the safetensors that `linnet eval`,
`fork` and `predict` read.

    scripts/from_pytorch.py resnet20.th resnet20.safetensors

The file is loaded with weights_only: no code of it runs. It may be a state dict, or a dict that holds one under
"state_dict", "model" or "net". Names stay as they are: Linnet understands `module.`, `fc`, `downsample` and
num_batches_tracked. Half-precision numbers become the same numbers in float32. Needs torch and safetensors from PyPI.
"""
import pathlib
import sys

import torch
from safetensors.torch import load_file, save_file


def state_dict_of(loaded, path):
    for key in ("state_dict", "model", "net"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not any(isinstance(value, torch.Tensor) for value in loaded.values()):
        sys.exit(f"{path}: expected a state dict (names and tensors), got {type(loaded).__name__}")
    extra = [name for name, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if extra:
        sys.exit(f"{path}: expected only tensors in the state dict, got also {', '.join(map(str, extra))}")
    return loaded


def in_float32(name, tensor):
    if not tensor.is_floating_point():
        return tensor
    single = tensor.to(torch.float32)
    if not torch.equal(single.to(tensor.dtype), tensor) and not tensor.isnan().any():
        sys.exit(f"{name}: its {tensor.dtype} numbers are no float32 numbers; round them first: state[name].float()")
    return single


def main(source, target):
    try:
        is_safe = source.endswith(".safetensors")
        loaded = load_file(source) if is_safe else torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        sys.exit(f"{source}: cannot be loaded without running code of it: {error}")
    tensors = {name: in_float32(name, tensor).detach().clone().contiguous()
               for name, tensor in state_dict_of(loaded, source).items()}
    if pathlib.Path(target).exists():
        sys.exit(f"{target} exists; remove it or choose another name")
    save_file(tensors, target, {"format": "pt"})
    print(f"{target}: {len(tensors)} tensors")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
