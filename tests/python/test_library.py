"""apps/python/nsa.py without results: finding the library, its structs against the headers, the
examples, and the pool of contexts behind nsa.attention(), with a stub for PyTorch."""

import contextlib
import ctypes
import gc
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import types
import unittest
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "apps" / "python"))
import nsa  # noqa: E402

CONFIG = {"seq_len": 70, "q_heads": 4, "kv_heads": 2, "qk_dim": 8, "v_dim": 6, "phi": "mean"}


class Library(unittest.TestCase):
    """Finding it, and refusing one that does not fit."""

    def test_layout(self):
        """Size and offsets of every struct are those of the headers."""
        structs = {"nsa_config": nsa._Config, "nsa_setup": nsa._Setup, "nsa_tensor": nsa._Tensor,
                   "nsa_found": nsa._Found, "nsa_stage": nsa._Table}
        names = [(kind, field) for kind, made in structs.items() for field, _ in made._fields_]
        source = ['#include "nsa_find.h"', '#include "nsa_stage.h"', "#include <stdio.h>",
                  "int main(void) {", 'printf("%d %zu ", NSA_ABI, sizeof(nsa_tensors));']
        source += [f'printf("%zu ", offsetof({kind}, {field}));' for kind, field in names]
        source += [f'printf("%zu ", sizeof({kind}));' for kind in structs if kind != "nsa_stage"]
        want = [nsa.ABI, ctypes.sizeof(nsa._Tensor) * len(nsa._IDS)]
        want += [getattr(structs[kind], field).offset for kind, field in names]
        want += [ctypes.sizeof(made) for kind, made in structs.items() if kind != "nsa_stage"]
        with tempfile.TemporaryDirectory() as work:
            path = pathlib.Path(work, "layout.c")
            path.write_text("\n".join(source + ["return 0; }"]))
            subprocess.run([os.environ.get("CC", "cc"), "-std=c11", f"-I{ROOT / 'stages'}", path,
                            "-o", path.with_suffix("")], check=True)
            said = subprocess.run([path.with_suffix("")], check=True, capture_output=True).stdout
        self.assertEqual([int(number) for number in said.split()], want)

    def test_constants(self):
        """Names, types and flags are those of nsa.h."""
        text = (ROOT / "stages" / "nsa.h").read_text()
        for flag in ("BACKWARD", "DECODE", "WANT_BRANCHES", "WANT_IMPORTANCE", "DEBUG_MEMORY",
                     "CHECK_VALUES"):
            bit = getattr(nsa, flag).bit_length() - 1
            self.assertRegex(text, rf"NSA_{flag} = 1 << {bit}\b")
        self.assertEqual(list(nsa._IDS)[:2] + list(nsa._IDS)[-1:], ["q", "k_cmp", "dphi_v_b2"])
        for dtype, size in (("float32", 4), ("float64", 8), ("int32", 4), ("bfloat16", 2)):
            nsa._lib.nsa_dtype_size.restype = ctypes.c_size_t
            self.assertEqual(nsa._lib.nsa_dtype_size(nsa._DTYPES[dtype]), size)
        self.assertEqual(nsa._lib.nsa_status_name(nsa._ERR_INPUT), b"bad input")
        self.assertEqual(nsa._lib.nsa_status_name(nsa._ERR_STATE), b"calls out of order")
        self.assertEqual(nsa._lib.nsa_status_name(nsa._ERR_IO), b"input/output error")

    def test_does_not_fit(self):
        with mock.patch.object(nsa, "ABI", 4), self.assertRaisesRegex(
                nsa.NsaError, "stage 01 has contract 5, nsa.py has 4"):
            nsa.Stage("01")
        fields = nsa._Tensor._fields_
        for wrong in (fields + [("more", ctypes.c_int64)], fields[:-1]):
            made = type("wrong", (ctypes.Structure,), {"_fields_": wrong})
            with mock.patch.object(nsa, "_Tensor", made), self.assertRaisesRegex(
                    ImportError, "nsa_tensor has another size"):
                nsa.Context("01", CONFIG)
        swapped = dict(nsa._Config._fields_)
        swapped = {"kv_heads": swapped.pop("kv_heads"), **swapped}
        made = type("wrong", (ctypes.Structure,), {"_fields_": list(swapped.items())})
        self.addCleanup(setattr, nsa._lib.nsa_config_defaults, "restype", nsa._Config)
        nsa._lib.nsa_config_defaults.restype = made
        with self.assertRaisesRegex(ImportError, "nsa_config.seq_len differs"):
            nsa._config_of(CONFIG)

    def run_python(self, folder, **environment):
        program = "import nsa; print(nsa.Stage('00').name)"
        kept = {key: value for key, value in os.environ.items() if key != "NSA_LIB"}
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                              check=False, env={**kept, "PYTHONPATH": str(folder), **environment})

    def test_found(self):
        """By NSA_LIB, and in an installation: PREFIX/share/nsa/python beside PREFIX/lib."""
        library = pathlib.Path(nsa._lib._name).resolve()
        with tempfile.TemporaryDirectory() as prefix:
            folder = pathlib.Path(prefix, "share", "nsa", "python")
            folder.mkdir(parents=True)
            shutil.copy(ROOT / "apps" / "python" / "nsa.py", folder)
            ran = self.run_python(folder)
            self.assertIn(f"no {prefix}/share/build/libnsa.so or {prefix}/lib/libnsa.so: build it "
                          "with make, or set NSA_LIB to its path", ran.stderr)
            ran = self.run_python(folder, NSA_LIB="/nowhere/libnsa.so")
            self.assertIn("no /nowhere/libnsa.so: build it", ran.stderr)
            self.assertEqual(self.run_python(folder, NSA_LIB=str(library)).stdout, "00_dense\n")
            pathlib.Path(prefix, "lib").symlink_to(library.parent)
            self.assertEqual(self.run_python(folder).stdout, "00_dense\n")

    def test_memory(self):
        small, large = nsa.Context("01", CONFIG), nsa.Context("01", {**CONFIG, "seq_len": 7000})
        self.assertGreater(large.memory, 50 * small.memory)
        closing, small = small.close, None
        gc.collect()
        self.assertFalse(closing.alive, "a context that nobody holds is still open")
        large.close()

    def test_example(self):
        for stage in ("01", "02"):
            ran = subprocess.run([sys.executable, "docs/examples/numpy_nsa.py", stage], cwd=ROOT,
                                 capture_output=True, text=True, check=True,
                                 env={**os.environ, "NSA_LIB": os.path.abspath(nsa._lib._name)})
            self.assertRegex(ran.stdout, "yes .*(\n.*)*yes ")
            self.assertNotIn("NO ", ran.stdout)


class FakeStream:
    """A stream of PyTorch: remembers which streams it waits for."""

    def __init__(self, number):
        self.cuda_stream, self.waits = number, []

    def wait_stream(self, other):
        self.waits.append(other.cuda_stream)


class Pool(unittest.TestCase):
    """Which context a call gets, with a PyTorch that is only a stub."""

    def setUp(self):
        self.capturing, self.stream = False, FakeStream(7)
        cuda = types.SimpleNamespace(current_stream=lambda: self.stream,
                                     device=lambda _: contextlib.nullcontext())
        for name, stub in (("torch", types.SimpleNamespace(cuda=cuda)),
                           ("_capturing", lambda: self.capturing)):
            patch = mock.patch.object(nsa, name, stub)
            patch.start()
            self.addCleanup(patch.stop)
        self.addCleanup(nsa.release_contexts, captured=True)

    def call(self, cu=None, is_cuda=True):
        return types.SimpleNamespace(key="key", stage="01", config=CONFIG, flags=0, device="cuda:0",
                                     geometry=(70, cu), is_cuda=is_cuda)

    def borrow(self, **more):
        call = self.call(**more)
        lease = nsa._borrow(call)
        lease.context.geometry = call.geometry
        return lease

    def test_owned(self):
        one, two = self.borrow(), self.borrow()
        self.assertIsNot(one.context, two.context)
        first = one.context
        self.assertIs(nsa._leases[one.number].context, first)
        self.assertEqual(int.from_bytes(one, sys.byteorder), one.number)
        number = one.number
        del one
        self.assertNotIn(number, nsa._leases)
        self.assertEqual(nsa._idle["key"], [first])
        self.assertIs(self.borrow().context, first)
        nsa.release_contexts()
        self.assertEqual((nsa._idle["key"], first.close.alive), ([], False))
        self.assertTrue(two.context.close.alive)

    def test_same_geometry_first(self):
        leases = [self.borrow(cu=cu) for cu in ([0, 70], [0, 30, 70], [0, 69, 70])]
        contexts = [lease.context for lease in leases]
        leases.clear()
        self.assertEqual(len(nsa._idle["key"]), 3)
        self.assertIs(self.borrow(cu=[0, 30, 70]).context, contexts[1])
        self.assertIn(self.borrow(cu=[0, 70]).context, contexts)
        self.assertIn(self.borrow(cu=[0, 1, 70]).context, contexts)
        self.assertEqual(len(nsa._idle["key"]), 3)

    def test_captured(self):
        self.capturing = True
        with self.assertRaisesRegex(nsa.NsaError, "first run what you capture"):
            self.borrow()
        self.capturing = False
        context = self.borrow(cu=[0, 70]).context
        self.capturing = True
        with self.assertRaisesRegex(nsa.NsaError, "first run what you capture"):
            self.borrow(cu=[0, 1, 70])
        self.assertIs(self.borrow(cu=[0, 70]).context, context)
        self.assertEqual((nsa._idle["key"], nsa._captured), ([], [context]))
        self.capturing = False
        self.assertIsNot(self.borrow(cu=[0, 70]).context, context)
        nsa.release_contexts()
        self.assertTrue(context.close.alive)
        nsa.release_contexts(captured=True)
        self.assertFalse(context.close.alive)

    def test_streams(self):
        told = []
        with mock.patch.object(nsa.Context, "set_stream", lambda _, stream: told.append(stream)):
            with nsa._working(self.call()) as (lease, _):
                first = self.stream
                self.assertEqual((told, first.waits), ([first], []))
            self.stream = FakeStream(8)
            with nsa._working(self.call(), lease) as (again, context):
                self.assertIs(again, lease)
                self.assertIs(context, lease.context)
                self.assertEqual((told[-1], self.stream.waits), (self.stream, [7]))
            with nsa._working(self.call(), lease):
                self.assertEqual(self.stream.waits, [7])
            self.stream, self.capturing = FakeStream(9), True
            with nsa._working(self.call(), lease):
                self.assertEqual((told[-1], self.stream.waits), (self.stream, []))
            told.clear()
            with nsa._working(self.call(is_cuda=False)):
                self.assertEqual(told, [])


if __name__ == "__main__":
    unittest.main()
