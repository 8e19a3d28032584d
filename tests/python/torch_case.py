"""What torch_gpu.py compares with: NSA written densely for PyTorch, its inputs, and how close is
close."""

import math
import pathlib
import sys

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "apps" / "python"))
import nsa  # noqa: E402

T, HQ, HKV, DK, DV, HIDDEN = 150, 4, 2, 16, 12, 10
CONFIG = {"cmp_block": 8, "cmp_stride": 4, "slc_block": 16, "slc_count": 4, "window": 20}
TOKENS = ("q", "k_cmp", "v_cmp", "k_slc", "v_slc", "k_win", "v_win", "gate")
BFLOAT16 = 2  # nsa_arith of a stage that rounds to bfloat16 in between

# ------------------------------------------------------------- the operator, written densely


def attend(q, k, v, mask):
    """[T,Hq,dv]: softmax attention over the keys of mask [T,Hq,S]; a row without keys is 0."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("thd,shd->ths", q, k) / math.sqrt(q.shape[-1])
    top = scores.masked_fill(~mask, -math.inf).amax(-1, keepdim=True).clamp(min=-1e30).detach()
    p = torch.where(mask, scores - top, -math.inf).exp()
    return torch.einsum("ths,shd->thd", p / p.sum(-1, keepdim=True).clamp(min=1e-300), v)


def compress(x, w, kv):
    """[N,Hkv,D] of keys or values [T,Hkv,D], with the weights that are there."""
    blocks = x.unfold(0, CONFIG["cmp_block"], CONFIG["cmp_stride"]).movedim(-1, -2)  # [N,Hkv,l,D]
    w = {name[6:]: value for name, value in w.items() if name.startswith("phi_" + kv)}
    if not w:
        return blocks.mean(-2)
    if "w" in w:
        a = torch.softmax((blocks + w["pe"]) @ w["w"] + w["b"], -1)
        return (a.unsqueeze(-1) * blocks).sum(-2)
    hidden = torch.nn.functional.silu((blocks + w["pe"]).flatten(-2) @ w["w1"].T + w["b1"])
    return hidden @ w["w2"].T + w["b2"]


def dense(x, block_idx):
    """[T,Hq,dv] of one sequence in float64; block_idx [T,Hkv,n] says what the stage selected."""
    x = {name: value.double() for name, value in x.items()}
    q, gate, c = x["q"], x["gate"], CONFIG
    k_phi, v_phi = compress(x["k_cmp"], x, "k"), compress(x["v_cmp"], x, "v")
    t = torch.arange(len(q), device=q.device).view(-1, 1, 1)
    s = torch.arange(len(q), device=q.device).view(1, 1, -1)
    end = torch.arange(len(k_phi), device=q.device) * c["cmp_stride"] + c["cmp_block"] - 1
    chosen = (block_idx.unsqueeze(-1) == s.unsqueeze(-2) // c["slc_block"]).any(-2)
    chosen = chosen.repeat_interleave(HQ // HKV, 1) & (s <= t)
    all_heads = torch.ones(1, HQ, 1, dtype=torch.bool, device=q.device)
    branches = (attend(q, k_phi, v_phi, (end.view(1, 1, -1) <= t) & all_heads),
                attend(q, x["k_slc"], x["v_slc"], chosen),
                attend(q, x["k_win"], x["v_win"], (s <= t) & (s > t - c["window"]) & all_heads))
    return sum(gate[..., i:i + 1] * branch for i, branch in enumerate(branches))


# ------------------------------------------------------------- cases


class Case:
    """Inputs, a dict x of leaves that need gradients, and a dout."""

    def __init__(self, args, phi="mlp", dtype=torch.float32, seed=1, tokens=T):
        self.stage, self.device, self.args = args.stage, args.device, args
        random = torch.Generator().manual_seed(seed)
        shapes = {"q": (tokens, HQ, DK), "gate": (tokens, HQ, 3)}
        for branch in ("cmp", "slc", "win"):
            shapes["k_" + branch], shapes["v_" + branch] = (tokens, HKV, DK), (tokens, HKV, DV)
        length = CONFIG["cmp_block"]
        for kv, dim in (("k", DK), ("v", DV)):
            each = {"mean": {}, "gated": {"pe": (length, dim), "w": (dim,), "b": (length,)},
                    "mlp": {"pe": (length, dim), "w1": (HIDDEN, length * dim), "b1": (HIDDEN,),
                            "w2": (dim, HIDDEN), "b2": (dim,)}}[phi]
            shapes.update({f"phi_{kv}_{name}": shape for name, shape in each.items()})
        self.x = {}
        for name, shape in shapes.items():
            value = torch.randn(shape, generator=random)
            value = value.sigmoid() if name == "gate" else value * (
                shape[-1] ** -0.5 if name.startswith("phi") else 1)
            self.x[name] = value.to(self.device, dtype).requires_grad_()
        self.dout = torch.randn((tokens, HQ, DV), generator=random).to(self.device, dtype)

    def call(self, x=None, **more):
        x = x or self.x
        phi = {name: value for name, value in x.items() if name.startswith("phi")}
        return nsa.attention(*(x[name] for name in TOKENS), phi, config=CONFIG, stage=self.stage,
                             **more)

    def grads(self, out=None, dout=None, **more):
        """{name: gradient} of <out, dout>"""
        out = self.call() if out is None else out
        found = torch.autograd.grad(out, list(self.x.values()), self.dout if dout is None else dout,
                                    **more)
        return dict(zip(self.x, found))

    def selected(self, cu_seqlens=None):
        """block_idx [T,Hkv,n], read from a context of its own."""
        phi = "mlp" if "phi_k_w1" in self.x else "gated" if "phi_k_w" in self.x else "mean"
        config = {**CONFIG, "seq_len": len(self.dout), "q_heads": HQ, "kv_heads": HKV, "qk_dim": DK,
                  "v_dim": DV, "phi": phi, "phi_hidden": HIDDEN, "max_seqs": 8}
        with nsa.Context(self.stage, config) as context:
            context.load({**self.x, "cu_seqlens": cu_seqlens})
            context.forward()
            return context.read("block_idx", dtype=torch.int32, device=self.device).long()


def far(mine, truth):
    """rms of the difference over rms of the truth; NaN and Inf count as far."""
    truth = truth.double()
    ratio = ((mine.double() - truth).pow(2).mean().sqrt() / truth.pow(2).mean().sqrt()).item()
    return ratio if math.isfinite(ratio) else math.inf


def limits(case, dtype):
    """Allowed rms ratios of out and of gradients; see docs/trust.md. A result in bfloat16 has an
    error of up to 2^-9 of its own."""
    out, grad = (5e-3, 3e-2) if nsa.Stage(case.stage).table.arith == BFLOAT16 else (1e-5, 5e-5)
    return (out + 2**-9, grad + 2**-9) if dtype == torch.bfloat16 else (out, grad)


def assert_near(case, out, grads, want_out, want_grads, dtype):
    out_limit, grad_limit = limits(case, dtype)
    errors = {"out": far(out, want_out) / out_limit}
    for name, want in want_grads.items():
        if name == "phi_k_b2":  # zero but for rounding: softmax ignores a shift of all scores
            errors["d" + name] = grads[name].double().abs().max().item() / grad_limit
        else:
            errors["d" + name] = far(grads[name], want) / grad_limit
    worst = max(errors, key=errors.get)
    assert errors[worst] <= 1, f"{worst} is off by {errors[worst]:.3g} times what is allowed"


def assert_same(mine, other):
    for name, value in other.items():
        assert torch.equal(mine[name], value), f"the gradient of {name} differs"
