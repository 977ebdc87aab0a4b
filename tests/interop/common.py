"""What the tests against other programs share. A test that lacks a package ends with 77, which ctest reads as skipped."""
import json
import pathlib
import struct
import subprocess
import sys
import zlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
STATS = ["--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD))]


def need(*modules):
    for name in modules:
        try:
            __import__(name)
        except ImportError:
            print(f"skipped: python3 has no {name}")
            sys.exit(77)


def linnet(exe, *arguments, code=0):
    done = subprocess.run([exe, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != code:
        sys.exit(f"linnet {' '.join(map(str, arguments))}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def script(name, *arguments, code=0):
    done = subprocess.run([sys.executable, ROOT / "scripts" / name, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != code:
        sys.exit(f"{name} {' '.join(map(str, arguments))}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def write_png(path, pixels):
    """pixels: uint8 [height, width, 3]"""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + pixels[y].tobytes() for y in range(height))
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) +
                     chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b""))


def make_folder(root, count, classes=10, size=32, seed=1):
    """A folder data set whose test part is `count` pictures; returns them, uint8, in the order in which Linnet reads them."""
    import numpy as np
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, 4, 4, 3)).repeat(size // 4, 1).repeat(size // 4, 2)
    pictures = ((coarse + random.integers(0, 256, (count, size, size, 3))) // 2).astype(np.uint8)
    per_class = count // classes
    for i in range(count):
        for part in ("train", "test") if i % per_class == 0 else ("test",):
            folder = root / part / f"c{i // per_class:02}"
            folder.mkdir(parents=True, exist_ok=True)
            write_png(folder / f"{i:05}.png", pictures[i])
    return pictures


def folder_keys(root, size=32):
    return ["--set", "data.name=folder", "--set", f"data.path={root}", "--set", f"data.image_size={size}",
            "--set", "data.val_share=0"]


def normalised(pictures):
    import numpy as np
    x = (pictures.astype(np.float64) / 255 - MEAN) / STD
    return x.transpose(0, 3, 1, 2).astype(np.float32)


def worst(a, b):
    """Largest difference, relative to the largest number."""
    import numpy as np
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max() / np.abs(b).max())
