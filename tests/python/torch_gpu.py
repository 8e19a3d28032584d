"""nsa.attention() under PyTorch: gradients against PyTorch's own of a dense NSA, and what autograd,
autocast, checkpointing and CUDA graphs ask of it. For a machine with a GPU and PyTorch; CI has
neither.

    python3 tests/python/torch_gpu.py                       stage 03 on cuda
    python3 tests/python/torch_gpu.py --stage 02 --device cpu   what needs no GPU, on CPU tensors

One line a check, and a closing line; exit status 1 if a check failed.
"""

import argparse
import gc
import sys
import traceback

import torch
from torch.utils.checkpoint import checkpoint

from torch_case import (DK, DV, HQ, T, TOKENS, Case, assert_near, assert_same, dense, far, limits,
                        nsa)

CHECKS, GPU_CHECKS = [], []  # run in this order


def check(function):
    CHECKS.append(function)
    return function


def check_on_gpu(function):
    GPU_CHECKS.append(function)
    return function


def idle():
    gc.collect()
    return sum(map(len, nsa._idle.values()))


# ------------------------------------------------------------- checks


def against_dense(args, phi, dtype):
    case = Case(args, phi, dtype)
    out = case.call()
    assert out.dtype == dtype and out.shape == (T, HQ, DV)
    want = dense(case.x, case.selected())
    assert_near(case, out, case.grads(out), want, case.grads(want, case.dout.double()), dtype)


for _phi in ("mean", "gated", "mlp"):
    for _dtype in (torch.float32, torch.bfloat16):
        def _each(args, phi=_phi, dtype=_dtype):
            against_dense(args, phi, dtype)
        _each.__doc__ = f"out and all gradients against dense NSA, phi {_phi}, {_dtype}"
        check(_each)


@check
def packed(args):
    """two sequences by cu_seqlens, gradients against dense NSA of each"""
    case, cu, dtype = Case(args), [0, 61, T], torch.float32
    idx = case.selected(torch.tensor(cu, dtype=torch.int32))
    parts = [dense({name: value if name.startswith("phi") else value[a:b]
                    for name, value in case.x.items()}, idx[a:b]) for a, b in zip(cu, cu[1:])]
    want, out = torch.cat(parts), case.call(cu_seqlens=cu)
    assert_near(case, out, case.grads(out), want, case.grads(want, case.dout.double()), dtype)
    other = case.call(cu_seqlens=torch.tensor(cu))
    assert torch.equal(out, other), "cu_seqlens as a tensor gives something else"


@check
def forced(args):
    """block_idx given: the same blocks give the same bits, others what dense NSA gives with them"""
    case, idx = Case(args), Case(args).selected()
    out, again = case.call(), case.call(block_idx=idx)
    assert torch.equal(out, again)
    assert_same(case.grads(again), case.grads(out))
    idx[..., 1:] = -1
    few, want = case.call(block_idx=idx), dense(case.x, idx)
    assert_near(case, few, case.grads(few), want, case.grads(want, case.dout.double()),
                torch.float32)


@check
def batched(args):
    """[B,T,H,D] that is not contiguous, against the same tokens packed"""
    case, B = Case(args), 3
    cu = list(range(0, T + 1, T // B))
    views = {}
    for name, value in case.x.items():
        if not name.startswith("phi"):  # the memory is [B,H,T,D]
            value = value.unflatten(0, (B, -1)).transpose(1, 2).contiguous().transpose(1, 2)
            assert not value.is_contiguous()
        views[name] = value
    out, flat = case.call(views), case.call(cu_seqlens=cu)
    assert out.shape == (B, T // B, HQ, DV) and torch.equal(out.flatten(0, 1), flat)
    dout = case.dout.unflatten(0, (B, -1)).transpose(2, 3).contiguous().transpose(2, 3)
    assert_same(case.grads(out, dout), case.grads(flat))


@check
def expanded_dout(args):
    """the gradient of a sum is no tensor of its own memory"""
    case = Case(args)
    grads = dict(zip(case.x, torch.autograd.grad(case.call().sum(), list(case.x.values()))))
    assert_same(grads, case.grads(dout=torch.ones_like(case.dout)))


@check
def two_layers(args):
    """two layers of one shape share no state"""
    case, second = Case(args), Case(args, seed=2)
    up = torch.randn(DV, DK, device=case.device)

    def both(attention):
        return attention(second, {**second.x, "q": attention(case, case.x) @ up})
    idx = case.selected()
    out = both(lambda which, x: which.call(x))
    with torch.no_grad():
        hidden = case.call() @ up
    second_x, second.x = second.x, {**second.x, "q": hidden}
    second_idx, second.x = second.selected(), second_x
    want = both(lambda which, x: dense(x, idx if which is case else second_idx).float())
    errors = [far(mine, truth) for mine, truth in zip(
        torch.autograd.grad(out, [case.x["q"], case.x["v_slc"], second.x["k_win"]], case.dout),
        torch.autograd.grad(want, [case.x["q"], case.x["v_slc"], second.x["k_win"]], case.dout))]
    assert max(errors) <= 10 * limits(case, torch.float32)[1], f"off by {max(errors):.3g}"


@check
def two_forwards(args):
    """two forwards before one backward"""
    one, two = Case(args), Case(args, seed=2)
    want = one.grads(), two.grads()
    outs = one.call(), two.call()
    assert_same(one.grads(outs[0]), want[0])
    assert_same(two.grads(outs[1]), want[1])


@check
def checkpointed(args):
    """torch.utils.checkpoint, both kinds; the second keeps no context for the backward"""
    case = Case(args)
    want = case.grads()
    for reentrant in (True, False):
        before = idle()
        out = checkpoint(case.call, case.x, use_reentrant=reentrant) if not reentrant else \
            checkpoint(lambda *values: case.call(dict(zip(case.x, values))), *case.x.values(),
                       use_reentrant=True)
        assert reentrant or idle() >= before, "the node has kept its context"
        for value in case.x.values():
            value.grad = None
        out.backward(case.dout)
        assert_same({name: value.grad for name, value in case.x.items()}, want)


@check
def retained(args):
    """retain_graph: twice the same gradients, and no third time"""
    case = Case(args)
    out = case.call()
    first = case.grads(out, retain_graph=True)
    case.call(Case(args, seed=2).x)  # would overwrite a context that the node had lost
    assert_same(case.grads(out), first)
    try:
        case.grads(out)
    except RuntimeError:
        return
    raise AssertionError("a third backward is not refused")


@check
def returned(args):
    """contexts go back: after a backward, and after a node whose backward never ran"""
    case = Case(args)
    case.grads()
    free = idle()
    out = case.call()
    assert idle() == free - 1
    del out
    assert idle() == free
    for _ in range(5):
        case.grads()
    assert idle() == free, "contexts were opened that were not needed"
    nsa.release_contexts()
    assert idle() == 0


@check
def autocast(args):
    """autocast: out in its type, gradients in the inputs' types"""
    case = Case(args)
    kind = torch.device(case.device).type
    x = {name: value.bfloat16() if name in TOKENS else value for name, value in case.x.items()}
    with torch.autocast(kind, dtype=torch.bfloat16):
        out = case.call(x)
    plain = case.call(x)
    assert out.dtype == torch.bfloat16 and torch.equal(out, plain)
    grads = case.grads(out, case.dout.bfloat16())
    assert all(each.dtype == torch.float32 for each in grads.values())
    assert_same(grads, case.grads(plain, case.dout.bfloat16()))
    with torch.autocast(kind, dtype=torch.float16):
        out = case.call({name: value.half() for name, value in case.x.items()})
    assert out.dtype == torch.float16
    grads = case.grads(out, case.dout.half())
    assert all(each.dtype == torch.float32 for each in grads.values())
    assert far(grads["v_win"], case.grads()["v_win"]) < 1e-2


@check
def without_gradients(args):
    """no_grad and inputs that need none: no node, no backward's memory, the same bits"""
    case = Case(args)
    nsa.release_contexts()
    with torch.no_grad():
        out = case.call()
    assert [key[2] for key, contexts in nsa._idle.items() if contexts] == [0], "room for gradients"
    detached = case.call({name: value.detach() for name, value in case.x.items()})
    assert not out.requires_grad and not detached.requires_grad
    assert torch.equal(out, case.call()) and torch.equal(detached, out)


@check
def needed_gradients(args):
    """needs_input_grad: only what is needed is read"""
    case, read = Case(args), []
    want = case.grads()
    x = {name: value if name in ("v_slc", "phi_k_w2") else value.detach()
         for name, value in case.x.items()}
    out, method = case.call(x), nsa.Context.read
    nsa.Context.read = lambda self, name, *rest, **more: (
        read.append(name), method(self, name, *rest, **more))[1]
    try:
        mine = torch.autograd.grad(out, [x["v_slc"], x["phi_k_w2"]], case.dout)
    finally:
        nsa.Context.read = method
    assert sorted(read) == ["dphi_k_w2", "dv_slc"], read
    assert torch.equal(mine[0], want["v_slc"]) and torch.equal(mine[1], want["phi_k_w2"])


@check
def twice_differentiated(args):
    """a double backward is refused"""
    case = Case(args)
    grad, = torch.autograd.grad(case.call(), case.x["q"], case.dout, create_graph=True)
    try:
        grad.sum().backward()
    except RuntimeError as error:
        assert "once_differentiable" in str(error), error
    else:
        raise AssertionError("a double backward is not refused")


@check
def no_tokens(args):
    """no tokens, no sequences: empty results, gradients of zero"""
    case = Case(args)
    for lead in ((0,), (0, 5), (5, 0)):
        x = {name: value if name.startswith("phi") else value[:0].reshape(*lead, *value.shape[1:])
             for name, value in case.x.items()}
        out = case.call(x)
        assert out.shape == (*lead, HQ, DV), out.shape
        assert all(not grad.any() for grad in case.grads(out, torch.zeros_like(out)).values())


@check
def copying_hook(args):
    """a hook that copies what is saved is refused, as the copy holds no context"""
    case = Case(args)
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda saved: saved):
        out = case.call()
    try:
        case.grads(out)
    except nsa.NsaError as error:
        assert "hook" in str(error), error
    else:
        raise AssertionError("not refused")


@check
def refused(args):
    """bad input: the library's own text"""
    case = Case(args)
    for x, more, text in (({**case.x, "k_win": case.x["k_win"][:-1]}, {}, "k_win"),
                          (case.x, {"cu_seqlens": [0, 5]}, "cu_seqlens"),
                          ({**case.x, "q": case.x["q"].long()}, {}, "int64")):
        try:
            case.call(x, **more)
        except nsa.NsaError as error:
            assert text in str(error), error
        else:
            raise AssertionError(f"not refused: {text}")
    case.grads()  # and the pool is as good as before


@check_on_gpu
def side_stream(args):
    """forward and backward on a side stream, contexts that came from the default one"""
    case = Case(args)
    want = case.grads()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        mine = case.grads()
    torch.cuda.current_stream().wait_stream(stream)
    assert_same(mine, want)


@check_on_gpu
def graph(args):
    """in torch.cuda.graph: forward and backward replayed on new inputs, bitwise"""
    case, other = Case(args), Case(args, seed=2)
    want = {"out": other.call().detach(), **other.grads()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        case.grads()
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        out = case.call()
        grads = case.grads(out)
    case.grads()  # another context: the graph's own is not lent any more
    with torch.no_grad():
        for name, value in case.x.items():
            value.copy_(other.x[name])
        case.dout.copy_(other.dout)
    for _ in range(2):
        captured.replay()
        torch.cuda.synchronize()
        assert_same({"out": out.detach(), **grads}, want)
    del captured, out, grads
    nsa.release_contexts(captured=True)


@check_on_gpu
def memory(args):
    """free device memory is the same before and after 100 calls"""
    case = Case(args)
    case.grads()
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0]
    for _ in range(100):
        case.grads()
    torch.cuda.synchronize()
    after = torch.cuda.mem_get_info()[0]
    assert after == before, f"{before - after} bytes less"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--stage", default="03")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    passed = failed = 0
    print(f"PyTorch {torch.__version__}, stage {nsa.Stage(args.stage).name}, {args.device}")
    on_gpu = args.device.startswith("cuda")
    for function in CHECKS + GPU_CHECKS * on_gpu:
        try:
            function(args)
            passed, how = passed + 1, "passed"
        except Exception as error:  # pylint: disable=broad-except
            failed, how = failed + 1, "FAILED"
            if not isinstance(error, AssertionError):
                traceback.print_exc()
            print("       ", error)
        print(f"{how}  {function.__doc__}")
    skipped = 0 if on_gpu else len(GPU_CHECKS)
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
