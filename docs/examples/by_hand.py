#!/usr/bin/env python3
"""The worked example of docs/specification.md: 20 tokens with numbers small enough for paper.

    python3 docs/examples/by_hand.py            writes the case folder docs/examples/by_hand
    python3 docs/examples/by_hand.py --check    compares the folder with what would be written

A query scores 0, 1 or 2 with almost every key, and the scale is ln 2, so e^(scale score) is a
power of two and every probability a fraction with a small denominator.
"""
import json
import math
import os
import sys

import numpy as np

T = 20
CONFIG = {
    "seq_len": T, "q_heads": 2, "kv_heads": 1, "qk_dim": 2, "v_dim": 2,
    "cmp_block": 4, "cmp_stride": 2, "slc_block": 4, "slc_count": 3,
    "slc_init": 1, "slc_local": 1, "window": 4, "phi": "mean", "scale": math.log(2),
}
FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "by_hand")


def columns(first, second):
    """[T,1,2] of one kv head, from its two columns."""
    return np.stack([first, second], axis=-1).reshape(T, 1, 2)


def pairs(*values):
    """[T]: every value for two tokens, so that means of two pairs are whole numbers."""
    return np.repeat(values, 2)


def blocks(*values):
    """[T]: every value for the four tokens of a block."""
    return np.repeat(values, 4)


def at(tokens, value):
    """[T]: the value at some tokens, 0 elsewhere."""
    column = np.zeros(T)
    column[tokens] = value
    return column


def tensors():
    """The inputs: head 0 asks for a key's first number, head 1 for its second."""
    return {
        "q": np.tile([[1, 0], [0, 1]], (T, 1, 1)),
        "k_cmp": columns(pairs(0, 0, 0, 0, 2, 2, 0, 2, 0, 0), pairs(2, 0, 2, 2, 0, 0, 0, 0, 0, 2)),
        "v_cmp": columns(pairs(0, 0, 0, 0, 2, 2, 0, 0, 0, 0),
                         pairs(2, 2, 2, 2, 0, 0, 0, 0, -2, -2)),
        "k_slc": columns(at([5, 9], 2) + at([18], 1), at([0, 5, 6, 7, 9], 1)),
        "v_slc": columns(blocks(0, 1, 2, 2, -1), blocks(1, 0, 2, 2, 1)),
        "k_win": columns(np.tile([0, 0, 1, 2], 5), np.full(T, -1)),
        "v_win": columns(np.tile([1, 0, 1, 2], 5), np.tile([0, 1, 1, -1], 5)),
        "gate": np.tile([[0.5, 0.25, 0.25], [0.25, 0.5, 0.5]], (T, 1, 1)),
    }


def write():
    os.makedirs(FOLDER, exist_ok=True)
    with open(os.path.join(FOLDER, "config.json"), "w", encoding="ascii") as file:
        file.write(json.dumps(CONFIG, indent=1) + "\n")
    for name, values in tensors().items():
        np.save(os.path.join(FOLDER, name + ".npy"), values.astype(np.float32))


def check():
    with open(os.path.join(FOLDER, "config.json"), encoding="ascii") as file:
        same = json.load(file) == CONFIG
    for name, values in tensors().items():
        there = np.load(os.path.join(FOLDER, name + ".npy"))
        same = same and there.dtype == np.float32 and np.array_equal(there, values)
    if not same:
        sys.exit("by_hand: docs/examples/by_hand is not what this program writes")
    print("by_hand: the case is what this program writes")


if __name__ == "__main__":
    check() if sys.argv[1:] == ["--check"] else write()
