"""NSA on NumPy arrays through apps/python/nsa.py: forward, backward and decode of one sequence.

    PYTHONPATH=apps/python python3 docs/examples/numpy_nsa.py [stage]
"""
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "apps" / "python"))
import nsa  # noqa: E402

STAGE = sys.argv[1] if len(sys.argv) > 1 else "02"
T, HQ, HKV, DK, DV = 97, 4, 2, 8, 6
CONFIG = {"seq_len": T, "q_heads": HQ, "kv_heads": HKV, "qk_dim": DK, "v_dim": DV, "cmp_block": 8,
          "cmp_stride": 4, "slc_block": 16, "slc_count": 4, "window": 24, "phi": "mean"}


def make_inputs(random):
    """All inputs by the names of the specification, as float32; phi "mean" has no weights."""
    x = {"q": random.standard_normal((T, HQ, DK)), "gate": random.random((T, HQ, 3))}
    for branch in ("cmp", "slc", "win"):
        x["k_" + branch] = random.standard_normal((T, HKV, DK))
        x["v_" + branch] = random.standard_normal((T, HKV, DV))
    return {name: value.astype(np.float32) for name, value in x.items()}


def forward_and_backward(x, dout):
    """out [T,Hq,dv], the blocks that each query selected [T,Hkv,n], and two gradients."""
    with nsa.Context(STAGE, CONFIG, nsa.BACKWARD) as ctx:
        ctx.load(x)
        ctx.forward()
        ctx.load_dout(dout)
        ctx.backward()
        return tuple(ctx.read(name) for name in ("out", "block_idx", "dq", "dgate"))


def decode(x, prompt):
    """The rows from token `prompt` on, one step each: [T-prompt,Hq,dv]."""
    slot, rows = np.array([0], np.int32), []  # which decode slots take part: the only one
    with nsa.Context(STAGE, CONFIG, nsa.DECODE) as ctx:
        ctx.load({name: value[:prompt] for name, value in x.items()})
        ctx.prefill()
        for t in range(prompt, T):
            ctx.load_step({"active": slot, **{name: value[t:t + 1] for name, value in x.items()}})
            ctx.decode()
            rows.append(ctx.read("out"))
    return np.concatenate(rows)


def main():
    random = np.random.default_rng(2502)
    x, dout = make_inputs(random), random.standard_normal((T, HQ, DV)).astype(np.float32)
    out, block_idx, dq, dgate = forward_and_backward(x, dout)
    print("out", list(out.shape), "dq", list(dq.shape), "of type", out.dtype)
    print("blocks of the last query:", block_idx[-1].tolist())

    # out is linear in the gates, so <out, dout> is the sum of gate times its gradient
    total = (out * dout).sum()
    checks = {
        "decode gives the same rows": np.allclose(decode(x, 80), out[80:], atol=1e-5),
        "<out, dout> = <gate, dgate>": np.isclose(total, (x["gate"] * dgate).sum(), rtol=1e-4)}
    for what, holds in checks.items():
        print("yes" if holds else "NO ", what)
    try:
        nsa.Context(STAGE, {**CONFIG, "slc_block": 10})
    except nsa.NsaError as error:
        print("refused:", error)
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
