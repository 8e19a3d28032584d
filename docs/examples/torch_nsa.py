"""A small model of PyTorch with one layer of NSA, trained for a few steps through nsa.attention().

    PYTHONPATH=apps/python python3 docs/examples/torch_nsa.py [stage] [device]

With a GPU: stage 03 on cuda. On the CPU: python3 docs/examples/torch_nsa.py 02 cpu
"""
import pathlib
import sys

import torch
from torch import nn

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "apps" / "python"))
import nsa  # noqa: E402

STAGE = sys.argv[1] if len(sys.argv) > 1 else "03"
DEVICE = sys.argv[2] if len(sys.argv) > 2 else "cuda"
B, T, WIDTH, HQ, HKV, D, SYMBOLS = 4, 128, 32, 4, 2, 16, 8
CONFIG = {"cmp_block": 8, "cmp_stride": 4, "slc_block": 16, "slc_count": 4, "window": 24}


class Layer(nn.Module):
    """[B,T,WIDTH] -> [B,T,WIDTH]: projections, gates, and the compressors' weights."""

    def __init__(self):
        super().__init__()
        self.q = nn.Linear(WIDTH, HQ * D, bias=False)
        self.kv = nn.Linear(WIDTH, 6 * HKV * D, bias=False)  # a key and a value for each branch
        self.gate = nn.Linear(WIDTH, HQ * 3)
        self.out = nn.Linear(HQ * D, WIDTH, bias=False)
        length, hidden, self.phi = CONFIG["cmp_block"], 2 * D, nn.ParameterDict()
        for kv in ("k", "v"):
            for name, shape in (("pe", (length, D)), ("w1", (hidden, length * D)),
                                ("b1", (hidden,)), ("w2", (D, hidden)), ("b2", (D,))):
                self.phi[f"phi_{kv}_{name}"] = torch.randn(shape) * shape[-1] ** -0.5

    def forward(self, x):
        batch = x.shape[:2]
        q = self.q(x).view(*batch, HQ, D)
        pairs = self.kv(x).view(*batch, 6, HKV, D).unbind(2)  # k_cmp, v_cmp, k_slc, ... as views
        gate = self.gate(x).view(*batch, HQ, 3).sigmoid()
        y = nsa.attention(q, *pairs, gate, dict(self.phi), config=CONFIG, stage=STAGE)
        return self.out(y.flatten(2))


def main():
    torch.manual_seed(1)
    model = nn.ModuleDict({"embed": nn.Embedding(SYMBOLS, WIDTH), "attend": Layer(),
                           "say": nn.Linear(WIDTH, SYMBOLS)}).to(DEVICE)
    text = torch.randint(SYMBOLS, (B, T // 2), device=DEVICE).repeat(1, 2)  # the half comes again
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            x = model["embed"](text)
            logits = model["say"](x + model["attend"](x))
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(),
                                           text[:, 1:].flatten())
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return 0 if losses[-1] < 0.8 * losses[0] else 1


if __name__ == "__main__":
    sys.exit(main())
