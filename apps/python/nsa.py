"""Native Sparse Attention on NumPy arrays and PyTorch tensors: libnsa.so, called with ctypes.

One file; it needs Python 3.10 and libnsa.so, and uses NumPy and PyTorch (2.4 or later) where they
are. The library is $NSA_LIB, else that of the source tree or installation around this file.
Context is the contract of nsa.h, attention() a function of PyTorch; docs/examples shows both.

Letters of the shapes: T tokens of all packed sequences, B sequences, R query rows (T unless `rows`
are given), A active sequences of a decode step, Hq/Hkv query/key-value heads, dk/dv head dims, n
blocks selected. Arrays are float32, float64 or int32, and PyTorch's bfloat16 too; other types are
refused. An input that is not contiguous is copied; an array to read into must be contiguous.
"""

import contextlib
import ctypes
import itertools
import os
import pathlib
import sys
import types
import weakref
from ctypes import byref, c_char, c_char_p, c_double, c_int, c_int32, c_int64, c_uint32, c_void_p

try:
    import numpy
except ImportError:
    numpy = None
try:
    import torch
except ImportError:
    torch = None

ABI = 5  # NSA_ABI: the structs below are those of this number
# nsa_setup.flags: what a context will be asked to do
BACKWARD, DECODE, WANT_BRANCHES, WANT_IMPORTANCE, DEBUG_MEMORY, CHECK_VALUES = 1, 2, 4, 8, 32, 64
_ERR_INPUT, _ERR_STATE, _ERR_IO = 2, 4, 7  # of nsa_status
_DTYPES = {"float32": 1, "float64": 2, "int32": 3, "bfloat16": 4}  # nsa_dtype


def _find_library():
    given, around = os.environ.get("NSA_LIB"), list(pathlib.Path(__file__).resolve().parents)[2:4]
    places = [given] if given else [
        f"{folder}/{part}/libnsa.so" for folder, part in zip(around, ("build", "lib"))]
    for place in filter(os.path.isfile, places):
        return place
    raise ImportError(f"no {' or '.join(places)}: build it with make, or set NSA_LIB to its path")


def _struct(kind, /, **fields):
    return type(kind, (ctypes.Structure,), {"_fields_": list(fields.items())})


_lib = ctypes.CDLL(_find_library())
# The structs of nsa.h and nsa_find.h, field by field; of nsa_stage the beginning.
_Config = _struct(
    "nsa_config", **dict.fromkeys((
        "seq_len q_heads kv_heads qk_dim v_dim cmp_block cmp_stride slc_block slc_count slc_init "
        "slc_local window").split(), c_int64),
    phi=c_int, phi_hidden=c_int64, scale=c_double, max_seqs=c_int64, max_seq_len=c_int64)
_Setup = _struct("nsa_setup", flags=c_uint32, max_rows=c_int64, threads=c_int32)
_Tensor = _struct("nsa_tensor", data=c_void_p, dtype=c_int, ndim=c_int32, shape=c_int64 * 3,
                  place=c_int)
_Found = _struct("nsa_found", name=c_char * 64, stage=c_void_p, problem=c_char * 256,
                 handle=c_void_p)
_Table = _struct("nsa_stage", abi=c_uint32, arith=c_int, idea=c_char_p)
# Results that are no int. Arguments that are no int are passed as ctypes objects.
for _name in ("nsa_last_error", "nsa_status_name", "nsa_name"):
    getattr(_lib, _name).restype = c_char_p
_lib.nsa_config_defaults.restype = _Config
_lib.nsa_slot_len.restype, _lib.nsa_memory.restype = c_int64, ctypes.c_size_t
_lib.nsa_close.restype = _lib.nsa_free_stage.restype = None
_IDS = {}  # "q": 0, ...: the library's own names, in the order of nsa_id
while _lib.nsa_name(len(_IDS)):
    _IDS[_lib.nsa_name(len(_IDS)).decode()] = len(_IDS)


class NsaError(RuntimeError):
    """A refused call, with the value and the rule. `status`: the nsa_status, `name`: its name."""

    def __init__(self, status, text):
        self.status, self.name = status, _lib.nsa_status_name(status).decode()
        super().__init__(f"{self.name}: {text}")


def _check(status):
    if status:
        raise NsaError(status, _lib.nsa_last_error().decode(errors="replace"))


def _tensor_of(name, array, writes=False):
    """@return an nsa_tensor over a NumPy array or PyTorch tensor, and the object that owns its
    memory: the array, or a contiguous copy of it."""
    is_torch = torch is not None and isinstance(array, torch.Tensor)
    if not is_torch and (numpy is None or not isinstance(array, numpy.ndarray)):
        raise NsaError(_ERR_INPUT, f"{name} is a {type(array).__name__}, no NumPy array or tensor")
    dtype = str(array.dtype).replace("torch.", "")
    place = array.device.type if is_torch else "cpu"
    flat = array.is_contiguous() if is_torch else array.flags.c_contiguous and array.flags.aligned
    problem = (f"is {dtype}, which is no type of the library" if dtype not in _DTYPES else
               f"is on {place}, where no stage runs" if place not in ("cpu", "cuda") else
               f"has {array.ndim} dimensions, 3 at most" if array.ndim > 3 else
               "is to be read into, but is not contiguous" if writes and not flat else
               "is read-only" if writes and not is_torch and not array.flags.writeable else None)
    if problem:
        raise NsaError(_ERR_INPUT, f"{name} {problem}")
    if not flat:
        array = array.contiguous() if is_torch else numpy.require(array, None, "CA")
    data = array.data_ptr() if is_torch else array.ctypes.data
    return _Tensor(data, _DTYPES[dtype], array.ndim, (c_int64 * 3)(*array.shape),
                   place == "cuda"), array  # NSA_HOST is 0, NSA_DEVICE 1


def _config_of(config):
    """@return an nsa_config of the dict's keys; the library refuses unknown keys and values out of
    bounds, and each value must be where this file's layout of the struct has it."""
    made = _lib.nsa_config_defaults()
    for key, value in config.items():
        text, number = (value.encode(), 0) if isinstance(value, str) else (None, value)
        _check(_lib.nsa_config_set(byref(made), key.encode(), c_double(number), text))
        if text is None and getattr(made, key) != value:
            raise ImportError(f"nsa.py does not fit this libnsa.so: nsa_config.{key} differs")
    return made


class Stage:
    """A stage by its name ("03_fused_cuda"), number ("03") or path. Attributes: `name`, `idea`."""

    def __init__(self, name):
        found = _Found()
        _check(_lib.nsa_find_stage(None, str(name).encode(), byref(found)))
        weakref.finalize(self, _lib.nsa_free_stage, byref(found))
        table = _Table.from_address(found.stage)
        if table.abi != ABI:
            raise NsaError(_ERR_IO, f"stage {name} has contract {table.abi}, nsa.py has {ABI}")
        self.name, self.idea, self.table = found.name.decode(), table.idea.decode(), table


class Context(contextlib.AbstractContextManager):
    """An open stage. One thread at a time may use it; leaving a `with` block closes it.

    stage: a Stage, or a name of one. config: a dict of the keys in docs/specification.md. flags:
    what it will do, BACKWARD | DECODE | WANT_BRANCHES | ... threads and max_rows: as in nsa_setup.
    All memory is allocated here; `memory`: bytes of the host's. CUDA tensors: ordered with the
    default stream, so inside torch.cuda.stream() call set_stream() first, or results race."""

    def __init__(self, stage, config, flags=0, threads=0, max_rows=0):
        self.stage = stage if isinstance(stage, Stage) else Stage(stage)
        setup, self._handle = _Setup(flags, max_rows, threads), c_void_p()
        _check(_lib.nsa_open(byref(self.stage.table), byref(_config_of(config)), byref(setup),
                             byref(self._handle)))
        self.close = weakref.finalize(self, _lib.nsa_close, self._handle)
        self.memory = _lib.nsa_memory(self._handle)
        self.stream = self.geometry = None  # used by attention()
        # The last is no input: refused by name, if found. Twice as long, for larger structs to fit.
        tensors, last = (_Tensor * (2 * len(_IDS)))(), list(_IDS)[-1]
        tensors[len(_IDS) - 1].dtype = 1
        _lib.nsa_load(self._handle, tensors)
        if not _lib.nsa_last_error().decode().startswith(last + " "):
            raise ImportError("nsa.py does not fit this libnsa.so: nsa_tensor has another size")

    def __exit__(self, *error):
        self.close()

    def _call(self, function, *arguments):
        if not self.close.alive:
            raise NsaError(_ERR_STATE, "this context is closed")
        return function(self._handle, *arguments)

    def _load(self, function, inputs):
        tensors, alive = (_Tensor * len(_IDS))(), []
        for name, array in inputs.items():
            if name not in _IDS:
                raise NsaError(_ERR_INPUT, f'no tensor is called "{name}"')
            if array is not None:
                tensors[_IDS[name]], owner = _tensor_of(name, array)
                alive.append(owner)
        _check(self._call(function, tensors))

    def load(self, inputs):
        """Load a forward's or prefill's inputs, a dict: q [T,Hq,dk], k_cmp, k_slc, k_win
        [T,Hkv,dk], v_cmp, v_slc, v_win [T,Hkv,dv], gate [T,Hq,3], the phi weights of the config;
        optionally int32 cu_seqlens [B+1], rows [R], block_idx [T,Hkv,n], active [B], and dout."""
        self._load(_lib.nsa_load, inputs)

    def load_dout(self, dout):
        """Load the gradient of the output, dout [T,Hq,dv], for backward()."""
        tensor, _owner = _tensor_of("dout", dout)
        _check(self._call(_lib.nsa_load_dout, byref(tensor)))

    def load_step(self, inputs):
        """Load one decode step, a dict: active int32 [A], q [A,Hq,dk], keys [A,Hkv,dk], values
        [A,Hkv,dv], gate [A,Hq,3], optionally block_idx [A,Hkv,n]."""
        self._load(_lib.nsa_load_step, inputs)

    def forward(self):
        """Compute every output of what was loaded."""
        _check(self._call(_lib.nsa_forward))

    def backward(self):
        """Compute every gradient, after forward() and load_dout()."""
        _check(self._call(_lib.nsa_backward))

    def prefill(self):
        """forward(), and the sequences' tokens fill decode slots."""
        _check(self._call(_lib.nsa_prefill))

    def decode(self):
        """Append the loaded step to its slots and compute its A rows."""
        _check(self._call(_lib.nsa_decode))

    def result(self, name):
        """@return shape and type of a result now, as in ((97, 4, 64), "float32")."""
        tensor = _Tensor()
        _check(self._call(_lib.nsa_result, _IDS.get(name, -1), byref(tensor)))
        return tuple(tensor.shape[:tensor.ndim]), list(_DTYPES)[tensor.dtype - 1]

    def read(self, name, out=None, dtype=None, device=None):
        """Copy a result, "out" or "dq" for example, into `out`: an array or tensor of result()'s
        shape, contiguous, of its type or bfloat16. Without `out`, into a new NumPy array; or, if
        `dtype` is one of PyTorch's, into a new tensor on `device`. @return it."""
        shape, own = self.result(name)
        as_torch = numpy is None or (torch is not None and isinstance(dtype, torch.dtype))
        made = out if out is not None else numpy.empty(shape, own) if not as_torch else torch.empty(
            shape, dtype=dtype if dtype == torch.bfloat16 else getattr(torch, own), device=device)
        tensor, made = _tensor_of(name, made, writes=True)
        _check(self._call(_lib.nsa_read, _IDS.get(name, -1), byref(tensor)))
        return made if out is not None or dtype is None else \
            made.to(dtype) if as_torch else made.astype(dtype, copy=False)

    def slot_len(self, slot):
        """@return tokens in a decode slot now, or what nsa_slot_len() in nsa.h says."""
        return self._call(_lib.nsa_slot_len, c_int64(slot))

    def set_stream(self, stream):
        """Submit all later calls to a torch.cuda.Stream, or to a cudaStream_t given as an integer
        (0: the default stream). nsa_set_stream() in nsa.h says which of them still wait."""
        _check(self._call(_lib.nsa_set_stream, c_void_p(getattr(stream, "cuda_stream", stream))))


# For attention()
_TOKENS = ("q", "k_cmp", "v_cmp", "k_slc", "v_slc", "k_win", "v_win", "gate")
_idle = {}      # (stage, config, flags, device): contexts that no autograd node owns
_captured = []  # contexts whose memory is part of a CUDA graph
_leases, _numbers = weakref.WeakValueDictionary(), itertools.count(1)
_capturing = torch.cuda.is_current_stream_capturing if torch else None


class _Lease(bytearray):
    """A context on loan. A node saves a tensor over these bytes, the lease's number; so the loan
    ends when PyTorch frees that: after a backward without retain_graph, or with an unused graph."""

    def __init__(self, context, back):
        self.number = next(_numbers)
        super().__init__(self.number.to_bytes(8, sys.byteorder))
        self.context, self.back = context, back  # back: the list it returns to
        _leases[self.number] = self

    def __del__(self):
        self.back.append(self.context)


def _borrow(call):
    """@return a lease on an idle context, best one that had the same geometry, else on a new one.
    Leases end in any thread; list operations are atomic."""
    idle, capturing = _idle.setdefault(call.key, []), call.is_cuda and _capturing()
    for context in sorted(idle, key=lambda each: each.geometry != call.geometry):
        if capturing and context.geometry != call.geometry:
            break
        with contextlib.suppress(ValueError):  # another thread has borrowed it
            idle.remove(context)
            return _Lease(context, _captured if capturing else idle)
    if capturing:
        raise NsaError(_ERR_STATE, "no idle context had this geometry: first run what you capture")
    return _Lease(Context(call.stage, call.config, call.flags), idle)


@contextlib.contextmanager
def _working(call, lease=None):
    """Lend a context that works on PyTorch's current stream, after what it did on another one; a
    capture needs no such order, for PyTorch waits for all streams before it begins one."""
    with torch.cuda.device(call.device) if call.is_cuda else contextlib.nullcontext():
        lease = lease or _borrow(call)
        context = lease.context
        if call.is_cuda:
            stream, before = torch.cuda.current_stream(), context.stream
            if before is None or before.cuda_stream != stream.cuda_stream:  # by handle
                if before is not None and not _capturing():
                    stream.wait_stream(before)
                context.set_stream(stream)
                context.stream = stream
        yield lease, context


def _forward(call, tensors):
    """@return out [T,Hq,dv], and the lease on the context that computed it."""
    with _working(call) as (lease, context):
        context.geometry = None
        context.load(dict(zip(call.names, tensors), cu_seqlens=call.cu, block_idx=call.block_idx))
        context.geometry = call.geometry
        context.forward()
        return context.read("out", dtype=call.dtype, device=call.device), lease


def _gradients(ctx, dout):
    """@return a gradient for each argument of the node's forward, None where none is needed."""
    (number,) = ctx.saved_tensors
    lease, call = _leases.get(number.item()), ctx.call
    if lease is None:
        raise NsaError(_ERR_STATE, "the node's context is gone: a saved-tensor hook copied it")
    with _working(call, lease) as (_, context):
        context.load_dout(dout)
        context.backward()
        return None, *(context.read("d" + name, dtype=dtype, device=call.device) if needed else None
                       for name, dtype, needed in zip(call.names, ctx.dtypes,
                                                      ctx.needs_input_grad[1:]))


class _Attention(torch.autograd.Function if torch else object):
    """The node: forward(call, tensors in the order of call.names) -> out."""

    @staticmethod
    def forward(ctx, call, *tensors):
        out, lease = _forward(call, tensors)
        ctx.call, ctx.dtypes = call, [each.dtype for each in tensors]
        ctx.save_for_backward(torch.frombuffer(lease, dtype=torch.int64))
        return out

    @staticmethod
    def backward(ctx, dout):
        # With create_graph, and a dout that needs gradients, the result refuses to be used again.
        dout = dout.detach().requires_grad_(torch.is_grad_enabled())
        return torch.autograd.function.once_differentiable(_gradients)(ctx, dout)


def attention(q, k_cmp, v_cmp, k_slc, v_slc, k_win, v_win, gate, phi=None, cu_seqlens=None,
              block_idx=None, config=None, stage="03"):
    """out [...,Hq,dv], of q's type or autocast's, with gradients for q, keys, values, gate and phi
    weights; blocks are constants. Not differentiable twice.

    The tensors are [T,H,D], sequences packed as cu_seqlens (B+1 integers, best on the CPU) says, or
    [B,T,H,D]; gate [...,Hq,3]; block_idx [...,Hkv,n]; phi a dict of weights by their names. All are
    on one device, a CUDA one for a CUDA stage. config has the keys of the specification that no
    shape tells: cmp_block, window, scale, ...

    Memory: a call that needs gradients has a context of its own (copies of its inputs, all
    gradients, on their device) until PyTorch frees what it saved. Idle contexts wait for calls of
    the same stage, config, device and need of gradients; they hold seq_len tokens in max_seqs
    sequences, by default the call's: if sizes vary, set both to the largest.

    CUDA graphs: first run what you capture. A captured call takes an idle context that had the same
    geometry, and keeps it until release_contexts(captured=True)."""
    if torch is None:
        raise ImportError("nsa.attention() needs PyTorch")
    inputs = dict(zip(_TOKENS, (q, k_cmp, v_cmp, k_slc, v_slc, k_win, v_win, gate)))
    batch = q.shape[:-2]
    if len(batch) == 2:
        if cu_seqlens is not None:
            raise NsaError(_ERR_INPUT, "cu_seqlens is for packed tensors [T,H,D]")
        cu_seqlens = [b * batch[1] for b in range(batch[0] + 1)] if batch[0] else None
        inputs = {name: each.flatten(0, 1) for name, each in inputs.items()}
    # float32 holds every float16, which is no type of the library
    inputs = {name: each.float() if each.dtype == torch.float16 else each
              for name, each in {**inputs, **(phi or {})}.items()}
    call, tensors = _call_of(inputs, cu_seqlens, config or {}, stage), inputs.values()
    dtype = q.dtype
    if torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
    call.dtype = torch.float32 if dtype == torch.float16 else dtype
    if block_idx is not None:
        call.block_idx = block_idx.reshape(-1, *block_idx.shape[-2:]).to(torch.int32)
    out = _Attention.apply(call, *tensors) if call.flags else _forward(call, tensors)[0]
    return out.reshape(*batch, *out.shape[1:]).to(dtype)


def _call_of(inputs, cu_seqlens, config, stage):
    """@return what a call of attention() is: not its tensors, for the node keeps it."""
    q, w1 = inputs["q"], inputs.get("phi_k_w1")
    needed = torch.is_grad_enabled() and any(each.requires_grad for each in inputs.values())
    for name, each in inputs.items():
        if each.device != q.device:
            raise NsaError(_ERR_INPUT, f"{name} is on {each.device}, q on {q.device}")
    call = types.SimpleNamespace(names=list(inputs), device=q.device, stage=stage,
                                 is_cuda=q.is_cuda, block_idx=None, flags=BACKWARD * needed)
    cu = None if cu_seqlens is None else [int(each) for each in cu_seqlens]
    call.cu = None if cu is None else torch.tensor(cu, dtype=torch.int32)
    call.geometry = (q.shape[0], cu)
    call.config = {
        "seq_len": max(q.shape[0], 1), "max_seqs": len(cu) - 1 if cu else 1,
        "phi": "mlp" if w1 is not None else "gated" if "phi_k_pe" in inputs else "mean",
        **({} if w1 is None else {"phi_hidden": w1.shape[0]}), **config,
        "q_heads": q.shape[-2], "qk_dim": q.shape[-1], "kv_heads": inputs["k_cmp"].shape[-2],
        "v_dim": inputs["v_cmp"].shape[-1]}
    call.key = (stage, tuple(sorted(call.config.items())), call.flags, call.device)
    return call


def release_contexts(captured=False):
    """Close attention()'s idle contexts; with `captured` also those of graphs, then useless."""
    for contexts in [*_idle.values()] + [_captured] * captured:
        while contexts:
            contexts.pop().close()
