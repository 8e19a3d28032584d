"""Add PyTorch's dense attention on the CPU to a run file, for `peers.py RUN.json`."""

import json
import math
import os
import statistics
import sys
import time

TILE_ROWS = 2048  # tokens times heads; scores of a tile stay small
BUDGET = 60.0  # seconds a row may take


def fail(text):
    print(f"peers.py: {text}", file=sys.stderr)
    sys.exit(2)


def quartiles(samples):
    if len(samples) < 2:
        return samples[0], samples[0], samples[0]
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return q1, median, q3


def matmul_rate(torch):
    """GFLOP/s of the product of the run's ceiling: 1024 cubed, random values."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    times = []
    for _ in range(6):
        start = time.monotonic()
        torch.mm(a, b)
        times.append(time.monotonic() - start)
    return 2e-9 * 1024**3 / statistics.median(times[1:])


def tiles(torch, q, k, v, scale):
    """q [Hkv,T*G,dk] with a group's heads side by side, k [Hkv,T,dk], v [Hkv,T,dv]."""
    kv_heads, rows, _ = q.shape
    tokens = k.shape[1]
    group = rows // tokens
    step = max(1, TILE_ROWS // group)
    out = []
    for t0 in range(0, tokens, step):
        t1 = min(tokens, t0 + step)
        scores = torch.bmm(q[:, t0 * group : t1 * group], k[:, :t1].transpose(1, 2)) * scale
        token = torch.arange(t0, t1).repeat_interleave(group)
        scores.masked_fill_(torch.arange(t1) > token[:, None], -math.inf)
        out.append(torch.bmm(torch.softmax(scores, -1), v[:, :t1]))
    return torch.cat(out, 1)


def library(torch, q, k, v, group):
    """The library's causal attention; it needs keys repeated for each head."""
    heads = q.shape[0] * group
    tokens = k.shape[1]
    by_head = q.view(q.shape[0], tokens, group, -1).permute(0, 2, 1, 3).reshape(heads, tokens, -1)
    wide_k, wide_v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    attend = torch.nn.functional.scaled_dot_product_attention
    out = attend(by_head[None], wide_k[None], wide_v[None], is_causal=True)[0]
    by_token = out.view(q.shape[0], group, tokens, -1).permute(0, 2, 1, 3)
    return by_token.reshape(q.shape[0], tokens * group, -1)


def is_right(torch, out, q, k, v, scale):
    """Check some rows against float64; NaN fails."""
    group = q.shape[1] // k.shape[1]
    for token in sorted({0, k.shape[1] // 3, k.shape[1] - 1}):
        rows = slice(token * group, (token + 1) * group)
        scores = torch.bmm(q[:, rows].double(), k[:, : token + 1].double().transpose(1, 2)) * scale
        truth = torch.bmm(torch.softmax(scores, -1), v[:, : token + 1].double())
        off = (out[:, rows].double() - truth).pow(2).mean().sqrt()
        if not off <= 1e-5 * truth.pow(2).mean().sqrt():
            return False
    return True


def time_row(torch, attend, inputs, backward):
    """Median and quartiles of at least 10 runs, or fewer if one takes more than 2 s."""
    for x in inputs:
        x.grad = None
        x.requires_grad_(backward)
    samples = []
    wanted = 10
    while len(samples) <= wanted:  # the first warms up
        with torch.set_grad_enabled(backward):
            start = time.monotonic()
            out = attend(*inputs)
            if backward:
                gradient = torch.randn_like(out)
                start = time.monotonic()
                out.backward(gradient)
        samples.append(time.monotonic() - start)
        wanted = 10 if samples[0] <= 2 else max(3, min(10, int(20 / samples[0])))
    return quartiles(samples[1:]), wanted


def add_rows(torch, run, name, attend_of):
    """Rows of one backend, for each forward and backward row of dense_openblas."""
    shape = dict(part.split("=") for part in run["workload"].split(","))
    hq, hkv, dk, dv = (int(shape[key]) for key in ("Hq", "Hkv", "dk", "dv"))
    group, scale, rows = hq // hkv, 1 / math.sqrt(int(shape["dk"])), []
    late = set()
    for own in [r for r in run["rows"] if r["name"] == "dense_openblas" and not r["status"]]:
        tokens, backward = own["T"], own["pass"] == "backward"
        if own["pass"] == "decode" or own["pass"] in late:
            continue
        torch.manual_seed(1)
        q = torch.randn(hkv, tokens * group, dk)
        k, v = torch.randn(hkv, tokens, dk), torch.randn(hkv, tokens, dv)
        attend = attend_of(group, scale)
        start = time.monotonic()
        with torch.no_grad():
            right = is_right(torch, attend(q, k, v), q, k, v, scale)
        took = time.monotonic() - start
        row = {"name": name, "pass": own["pass"], "T": tokens, "checked": "float64, 3 tokens"}
        rows.append(row)
        if not right:
            row["status"] = "REFUSED: a row differs from float64 by more than 1e-5"
            continue
        if took * (3 if backward else 1) * 4 > BUDGET:
            row["status"] = f"not run: over its budget of {BUDGET:.0f} s"
            late.add(own["pass"])
            continue
        (q1, median, q3), runs = time_row(torch, attend, (q, k, v), backward)
        row.update(status="", runs=runs, median=median, q1=q1, q3=q3, flops=own["flops"],
                   bytes=own["bytes"], tokens=own["tokens"], bound="flops",
                   share=1e-9 * own["flops"] / median / run["gflops"],
                   dense=own["median"] / median, dense_low=own["q1"] / q3,
                   dense_high=own["q3"] / q1)
        print(f"{name}, {own['pass']}, T = {tokens}: {1e3 * median:.3g} ms, "
              f"{own['median'] / median:.3g}x dense_openblas")
    return rows


def add_to(path):
    """Add rows to the run file `path`."""
    try:
        with open(path, encoding="utf-8") as file:
            run = json.load(file)
    except (OSError, ValueError) as error:
        fail(f"{path}: {error}")
    if run.get("batch") != 1 or not run.get("gflops"):
        fail(f"{path}: needs a run of batch 1 with OpenBLAS")
    try:
        import torch
    except ImportError:
        print("peers.py: SKIP: PyTorch is not installed")
        return
    torch.set_num_threads(int(run["threads"]))
    rate = matmul_rate(torch)
    print(f"PyTorch {torch.__version__}: matrix product {rate:.0f} GFLOP/s")
    if rate < 0.5 * run["gflops"]:
        print(f"peers.py: SKIP: less than half of OpenBLAS's {run['gflops']:.0f}: no yardstick")
        return
    run["rows"] = [r for r in run["rows"] if not r["name"].startswith("torch_")]
    rows = add_rows(torch, run, "torch_tiles",
                    lambda group, scale: lambda q, k, v: tiles(torch, q, k, v, scale))
    if hasattr(torch.nn.functional, "scaled_dot_product_attention"):
        rows += add_rows(torch, run, "torch_sdpa",
                         lambda group, scale: lambda q, k, v: library(torch, q, k, v, group))
    else:
        print("peers.py: SKIP torch_sdpa: this PyTorch is older than 2.0")
    for row in rows:  # beside the row that it is compared with
        same = [i for i, r in enumerate(run["rows"])
                if (r["pass"], r["T"]) == (row["pass"], row["T"])]
        run["rows"].insert(same[-1] + 1, row)
    run["peers"] = f"PyTorch {torch.__version__}, matrix product {rate:.0f} GFLOP/s"
    with open(path + ".part", "w", encoding="utf-8") as file:
        json.dump(run, file, indent="\t")
        file.write("\n")
    os.replace(path + ".part", path)
