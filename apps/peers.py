#!/usr/bin/env python3
"""Other libraries' attention, to compare with ours, where PyTorch is installed. Nothing else
needs this.

    build/nsa bench --peers "python3 apps/peers.py"

starts it as `peers.py` and asks it to time one run at a time, in turn with the stages: requests on
standard input, answers on standard output, one JSON object a line (docs/measuring.md has the
protocol). On a GPU: PyTorch's scaled_dot_product_attention by its FlashAttention-2 and cuDNN
backends, in bfloat16, forward, backward and one query of decode; and other implementations of
native sparse attention that can be imported: fla (or native_sparse_attention), and flash_nsa,
which needs the package flash_attn too. Without a GPU, on the CPU in float32: the library's
function, and tiles of queries on its matrix product. Times on a GPU are CUDA events around the
call, after 256 MB were written to flush the cache; a backward is the gradients alone.

    python3 apps/peers.py notes/runs/cpu.json

reads which lengths, heads, dims and passes a run of the CPU timed, times causal attention by
PyTorch on the same sizes and threads, and adds rows "torch_sdpa" and "torch_tiles" to the file. A
PyTorch on a slow BLAS is not a fair comparison: if its matrix product reaches less than half of
the run's sgemm, no row is added. Without PyTorch it says so and exits with 0.
"""

import gc
import importlib.util
import json
import math
import os
import sys
import time
from contextlib import nullcontext

from peers_cpu import add_to, fail, is_right, matmul_rate, tiles

FLUSH = 256 << 20  # bytes written before each run on a GPU
HEAD_START = 2000000  # cycles that a GPU waits, so that a call is queued before it begins


# ------------------------------------------------------------- timed in turn with a bench


class Refused(Exception):
    """The request cannot be run here."""


class Wrong(Exception):
    """It ran, and the result is wrong."""


def off_by(pairs):
    """rms of the differences over rms of the truth, over all pairs (mine, truth)."""
    off = sum(float((mine.double() - truth).pow(2).sum()) for mine, truth in pairs)
    return math.sqrt(off / sum(float(truth.pow(2).sum()) for _, truth in pairs))


class Case:
    """One backend at one size. Subclasses set `run`, which is timed."""

    def __init__(self, torch, ask, device):
        self.torch, self.ask, self.device = torch, ask, device
        self.backward, self.decode = ask["pass"] == "backward", ask["pass"] == "decode"
        self.checked = "finite"
        torch.manual_seed(1)

    def randn(self, *shape):
        dtype = self.torch.bfloat16 if self.device == "cuda" else self.torch.float32
        x = self.torch.randn(*shape, device=self.device, dtype=dtype)
        return x.requires_grad_(self.backward)

    def bind(self, attend, inputs):
        """Set `run` to attend(), or to the gradients of its inputs."""
        torch = self.torch
        self.inputs = inputs
        if not self.backward:
            def forward():
                with torch.no_grad():
                    return attend()
            self.run = forward
            self.out = forward()
            return
        self.out = attend()
        self.dout = torch.randn_like(self.out)
        self.run = lambda: torch.autograd.grad(self.out, inputs, self.dout, retain_graph=True)

    def check(self):
        results = self.run() if self.backward else [self.out]
        if not all(bool(self.torch.isfinite(x).all()) for x in results):
            raise Wrong("a result is not finite")
        return results

    def seconds(self, flush):
        torch = self.torch
        if self.device == "cpu":
            start = time.monotonic()
            self.run()
            return time.monotonic() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        if hasattr(torch.cuda, "_sleep"):
            torch.cuda._sleep(HEAD_START)
        begin.record()
        result = self.run()
        end.record()
        end.synchronize()
        del result
        return 1e-3 * begin.elapsed_time(end)


class Sdpa(Case):
    """PyTorch's function by one of its backends; q [B,Hq,T,dk], k [B,Hkv,T,dk]."""

    def __init__(self, torch, ask, device, backend):
        super().__init__(torch, ask, device)
        B, T, Hq, Hkv = (ask[key] for key in ("B", "T", "Hq", "Hkv"))
        self.group = Hq // Hkv
        q = self.randn(B, Hq, 1 if self.decode else T, ask["dk"])
        k, v = self.randn(B, Hkv, T, ask["dk"]), self.randn(B, Hkv, T, ask["dv"])
        self.qkv = (q, k, v)
        tail = ""
        try:
            self.use(backend, q, k, v, {"enable_gqa": True} if self.group > 1 else {})
        except (RuntimeError, TypeError):
            if self.group == 1:
                raise
            wide = [x.detach().repeat_interleave(self.group, 1).requires_grad_(self.backward)
                    for x in (k, v)]
            self.use(backend, q, wide[0], wide[1], {})
            tail = ", kv heads expanded"
        self.checked = ("float64: out and dq" if self.backward else "float64: out") + tail

    def use(self, backend, q, k, v, options):
        attend = self.torch.nn.functional.scaled_dot_product_attention
        causal = not self.decode
        if backend:
            from torch.nn.attention import SDPBackend, sdpa_kernel

        def call():
            with sdpa_kernel([getattr(SDPBackend, backend)]) if backend else nullcontext():
                return attend(q, k, v, is_causal=causal, **options)
        self.bind(call, (q, k, v))

    def truth(self, token):
        """out and, for a backward, dq of one token, [B,Hkv,G,...] in float64."""
        torch = self.torch
        seen = token + 1 if not self.decode else self.ask["T"]
        scale = 1 / math.sqrt(self.ask["dk"])
        q, k, v = (x.detach() for x in self.qkv)
        k, v = k[:, :, :seen].double(), v[:, :, :seen].double()
        rows = q[:, :, token].double().unflatten(1, (-1, self.group))
        p = torch.softmax(scale * rows @ k.transpose(2, 3), -1)
        if not self.backward:
            return p @ v, None
        dp = self.dout[:, :, token].double().unflatten(1, (-1, self.group)) @ v.transpose(2, 3)
        ds = p * (dp - (p * dp).sum(-1, keepdim=True))
        return p @ v, scale * ds @ k

    def check(self):
        results = super().check()
        last = self.qkv[0].shape[2] - 1
        outs, gradients = [], []
        for token in sorted({last // 7, last // 3, last}):
            out, dq = self.truth(token)
            outs.append((self.out.detach()[:, :, token].unflatten(1, (-1, self.group)), out))
            if dq is not None:
                mine = results[0][:, :, token].unflatten(1, (-1, self.group))
                gradients.append((mine, dq))
        half = self.device == "cuda"
        if not off_by(outs) <= (1e-2 if half else 1e-5):
            raise Wrong(f"out is off by {off_by(outs):.2g} of its rms")
        if gradients and not off_by(gradients) <= (2e-2 if half else 5e-5):
            raise Wrong(f"dq is off by {off_by(gradients):.2g} of its rms")
        return results


class Tiles(Case):
    """Tiles of queries on the matrix product; CPU only."""

    def __init__(self, torch, ask, device, _):
        super().__init__(torch, ask, device)
        if ask["B"] != 1 or self.decode:
            raise Refused("one sequence, forward or backward")
        group, scale = ask["Hq"] // ask["Hkv"], 1 / math.sqrt(ask["dk"])
        q = self.randn(ask["Hkv"], ask["T"] * group, ask["dk"])
        k = self.randn(ask["Hkv"], ask["T"], ask["dk"])
        v = self.randn(ask["Hkv"], ask["T"], ask["dv"])
        self.bind(lambda: tiles(torch, q, k, v, scale), (q, k, v))
        if not is_right(torch, self.out.detach(), q.detach(), k.detach(), v.detach(), scale):
            raise Wrong("a row differs from float64 by more than 1e-5")
        self.checked = "float64: out"


class Fla(Case):
    """parallel_nsa of fla or native_sparse_attention: mean compression of whole blocks."""

    def __init__(self, torch, ask, device, _):
        super().__init__(torch, ask, device)
        if self.decode:
            raise Refused("forward and backward alone")
        try:
            from fla.ops.nsa import parallel_nsa
        except ImportError:
            from native_sparse_attention.ops.parallel import parallel_nsa
        B, T, Hq, Hkv = (ask[key] for key in ("B", "T", "Hq", "Hkv"))
        q = self.randn(B, T, Hq, ask["dk"])
        k, v = self.randn(B, T, Hkv, ask["dk"]), self.randn(B, T, Hkv, ask["dv"])
        gates = [self.randn(B, T, Hq).detach().sigmoid().requires_grad_(self.backward)
                 for _ in range(3)]
        options = {"block_counts": ask["n"], "block_size": ask["l2"]}

        def attend(window):
            g_cmp, g_slc, g_win = gates
            out = parallel_nsa(q, k, v, g_cmp, g_slc, g_win if window else None,
                               window_size=window, **options)
            return out[0] if isinstance(out, (tuple, list)) else out
        try:
            self.bind(lambda: attend(ask["w"]), (q, k, v, *gates))
            window = "a window"
        except Exception:  # it wants the flash_attn package for the window
            self.bind(lambda: attend(0), (q, k, v, *gates[:2]))
            window = "no window"
        self.checked = f"finite; l = d = l2, mean, {window}"


class FlashNsa(Case):
    """HFNSACore of flash_nsa."""

    def __init__(self, torch, ask, device, _):
        super().__init__(torch, ask, device)
        from flash_nsa import HFNSACore, NSAConfig
        if self.decode or ask["dk"] != ask["dv"]:
            raise Refused("forward and backward, dk = dv alone")
        config = NSAConfig()
        wanted = {"num_heads": "Hq", "num_kv_heads": "Hkv", "head_dim": "dk", "kernel_size": "l",
                  "stride": "d", "block_size": "l2", "top_n": "n", "window_size": "w"}
        for name, key in wanted.items():
            if hasattr(config, name):
                setattr(config, name, ask[key])
        B, T, Hq, Hkv = (ask[key] for key in ("B", "T", "Hq", "Hkv"))
        starts = torch.arange(0, B * T + 1, T, device=device, dtype=torch.int32)
        q = self.randn(B * T, Hq, ask["dk"])
        k, v = self.randn(B * T, Hkv, ask["dk"]), self.randn(B * T, Hkv, ask["dv"])
        weight = self.randn(B * T, Hq, 3)
        core = HFNSACore(config).to(q)
        self.bind(lambda: core(q, k, v, weight, starts), (q, k, v, weight))
        self.checked = "finite; its own compressor"


def is_there(*modules):
    """The first module that can be imported, or None."""
    for module in modules:
        try:
            if importlib.util.find_spec(module):
                return module
        except Exception:  # a package may fail in ways of its own
            continue
    return None


def ways(torch, gpu):
    """The available backends: (name, class, its argument, sparse, passes); and the absent ones."""
    both, all_three = "forward backward", "forward backward decode"
    if not gpu:
        return [("torch_sdpa", Sdpa, "", 0, all_three), ("torch_tiles", Tiles, "", 0, both)], []
    found = [("torch_flash2", Sdpa, "FLASH_ATTENTION", 0, all_three),
             ("torch_cudnn", Sdpa, "CUDNN_ATTENTION", 0, all_three)]
    absent = []
    fla = ("fla.ops.nsa", "native_sparse_attention")  # one of the two
    for name, case, needed in (("fla_nsa", Fla, (fla,)),
                               ("flash_nsa", FlashNsa, (("flash_nsa",), ("flash_attn",)))):
        missing = [" or ".join(modules) for modules in needed if not is_there(*modules)]
        if missing:
            absent.append(f"{name} (needs {' and '.join(missing)})")
        else:
            found.append((name, case, "", 1, both))
    return found, absent


class Server:
    """Answers requests one by one."""

    def __init__(self):
        self.cases, self.ways, self.flush, self.device = {}, {}, None, "cpu"

    def hello(self, ask):
        try:
            import torch
        except ImportError:
            return {"about": "PyTorch is not installed", "backends": []}
        self.torch = torch
        gpu = bool(ask.get("gpu")) and torch.cuda.is_available()
        torch.set_num_threads(int(ask.get("threads", 1)))
        about = f"PyTorch {torch.__version__}"
        if gpu:
            self.device = "cuda"
            self.flush = torch.empty(FLUSH, dtype=torch.uint8, device="cuda")
            about += f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        else:
            about += f", matrix product {matmul_rate(torch):.0f} GFLOP/s"
        found, absent = ways(torch, gpu)
        self.ways = {way[0]: way for way in found}
        return {"about": about, "absent": ", ".join(absent), "backends": [
            {"name": name, "device": "gpu" if gpu else "cpu", "sparse": sparse, "passes": passes,
             "arith": "bfloat16" if gpu else "float32"} for name, _, _, sparse, passes in found]}

    def open(self, ask):
        _, kind, argument, _, _ = self.ways[ask["backend"]]
        case = kind(self.torch, ask, self.device, argument)
        case.check()
        self.clean()
        self.cases[max(self.cases, default=0) + 1] = case
        case.seconds(self.flush)
        return {"id": max(self.cases), "first": case.seconds(self.flush), "checked": case.checked}

    def time(self, ask):
        return {"seconds": self.cases[ask["id"]].seconds(self.flush)}

    def close(self, ask):
        self.cases.pop(ask["id"], None)
        self.clean()
        return {}

    def clean(self):
        """Free the memory that PyTorch caches, for the stages."""
        if self.device == "cuda":
            gc.collect()
            self.torch.cuda.empty_cache()

    def answer(self, line):
        try:
            ask = json.loads(line)
            return {"hello": self.hello, "open": self.open, "time": self.time,
                    "close": self.close}[ask["op"]](ask)
        except Wrong as problem:
            return {"wrong": str(problem)}
        except Exception as problem:  # whatever a library thinks of: its row says it
            text = " ".join(str(problem).split()) or "no reason given"
            return {"error": f"{type(problem).__name__}: {text}"[:190]}


def serve():
    """Answers go to standard output; what libraries print there is redirected to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    server = Server()
    for line in sys.stdin:
        print(json.dumps(server.answer(line)), file=answers, flush=True)


def main():
    if len(sys.argv) > 2:
        fail("usage: peers.py [RUN.json]")
    if len(sys.argv) == 2:
        add_to(sys.argv[1])
    else:
        serve()


if __name__ == "__main__":
    main()
