"""Run NSA on NumPy arrays: write a case folder, call `nsa run`, load the results, check them.

    python3 docs/examples/numpy_case.py [path of nsa] [stage]
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

NSA = sys.argv[1] if len(sys.argv) > 1 else "build/nsa"
STAGE = sys.argv[2] if len(sys.argv) > 2 else "01"

T, HQ, HKV, DK, DV = 97, 4, 2, 8, 6
BLOCK, HIDDEN = 8, 16
CONFIG = {"seq_len": T, "q_heads": HQ, "kv_heads": HKV, "qk_dim": DK, "v_dim": DV,
          "cmp_block": BLOCK, "cmp_stride": 4, "slc_block": 16, "slc_count": 4,
          "window": 128, "phi": "mlp", "phi_hidden": HIDDEN}


def make_inputs(rng):
    """All inputs by the names of the specification, as float32."""
    x = {"q": rng.standard_normal((T, HQ, DK)), "gate": rng.random((T, HQ, 3))}
    for pair in ("cmp", "slc", "win"):
        x["k_" + pair] = rng.standard_normal((T, HKV, DK))
        x["v_" + pair] = rng.standard_normal((T, HKV, DV))
    for kv, dim in (("k", DK), ("v", DV)):
        x[f"phi_{kv}_pe"] = 0.1 * rng.standard_normal((BLOCK, dim))
        x[f"phi_{kv}_w1"] = rng.standard_normal((HIDDEN, BLOCK * dim)) / np.sqrt(BLOCK * dim)
        x[f"phi_{kv}_b1"] = 0.1 * rng.standard_normal(HIDDEN)
        x[f"phi_{kv}_w2"] = rng.standard_normal((dim, HIDDEN)) / np.sqrt(HIDDEN)
        x[f"phi_{kv}_b2"] = 0.1 * rng.standard_normal(dim)
    return {name: value.astype(np.float32) for name, value in x.items()}


def run_nsa(x):
    """One forward; returns the results by name."""
    with tempfile.TemporaryDirectory() as root:
        case, result = pathlib.Path(root, "case"), pathlib.Path(root, "result")
        case.mkdir()
        (case / "config.json").write_text(json.dumps(CONFIG))
        for name, value in x.items():
            np.save(case / (name + ".npy"), value)
        subprocess.run([NSA, "run", "--stage", STAGE, "--input", case, "--output", result],
                       check=True)
        return {file.stem: np.load(file) for file in result.glob("*.npy")}


def causal(q, k, v):
    """Dense causal attention; each key and value head serves HQ / HKV query heads."""
    q = q.astype(np.float64)
    k = np.repeat(k, HQ // HKV, axis=1).astype(np.float64)
    v = np.repeat(v, HQ // HKV, axis=1).astype(np.float64)
    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(DK)
    scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return np.einsum("hts,shd->thd", p, v)


def main():
    x = make_inputs(np.random.default_rng(2502))
    y = run_nsa(x)
    print("results:", ", ".join(f"{name} {list(y[name].shape)}" for name in sorted(y)))
    print("blocks of the last query:", y["block_idx"][-1].tolist())

    branches = np.stack([y["out_cmp"], y["out_slc"], y["out_win"]], axis=-1)  # [T,Hq,dv,3]
    gated = (x["gate"][:, :, None, :] * branches).sum(axis=-1)
    checks = {
        "out is the gated sum of the three branches": np.allclose(y["out"], gated, atol=1e-5),
        "window >= T: out_win is dense causal attention": np.allclose(
            y["out_win"], causal(x["q"], x["k_win"], x["v_win"]), atol=1e-5),
    }
    for what, holds in checks.items():
        print("yes" if holds else "NO ", what)
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
