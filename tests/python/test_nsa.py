"""apps/python/nsa.py with NumPy: results against tests/vectors, decode, arrays, refusals.

    make test-python        needs NumPy; builds the stages and sets NSA_LIB

test_library.py has the rest; PyTorch's part is torch_gpu.py, which needs a GPU.
"""

import contextlib
import json
import pathlib
import sys
import unittest

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "apps" / "python"))
import nsa  # noqa: E402

VECTORS = sorted(each.parent for each in (ROOT / "tests" / "vectors").glob("*/config.json"))
STAGES = ("00", "02", "03")
CONFIG = {"seq_len": 70, "q_heads": 4, "kv_heads": 2, "qk_dim": 8, "v_dim": 6, "cmp_block": 8,
          "cmp_stride": 4, "slc_block": 16, "slc_count": 4, "window": 12, "phi": "mlp",
          "phi_hidden": 5}


def read_case(folder):
    """@return config, inputs and expected results of a case, two dicts of arrays by name."""
    config = json.loads((folder / "config.json").read_text())
    inputs = {each.stem: np.load(each) for each in folder.glob("*.npy")}
    if "cu_seqlens" in inputs:
        config["max_seqs"] = len(inputs["cu_seqlens"]) - 1
    return config, inputs, {each.stem: np.load(each) for each in folder.glob("expect/*.npy")}


def round_bfloat16(x):
    """float32 rounded to the nearest bfloat16, ties to even."""
    bits = x.view(np.uint32)
    return (bits + 0x7fff + (bits >> 16 & 1) & 0xffff0000).astype(np.uint32).view(np.float32)


def make_inputs(seed=1, config=None, **changes):
    """All inputs of a config, float32, by the names of the specification."""
    c = {**CONFIG, **(config or {})}
    T, Hq, Hkv, dk, dv = (c[key] for key in ("seq_len", "q_heads", "kv_heads", "qk_dim", "v_dim"))
    random = np.random.default_rng(seed)
    x = {"q": random.standard_normal((T, Hq, dk)), "gate": random.random((T, Hq, 3))}
    for branch in ("cmp", "slc", "win"):
        x["k_" + branch] = random.standard_normal((T, Hkv, dk))
        x["v_" + branch] = random.standard_normal((T, Hkv, dv))
    for kv, dim in (("k", dk), ("v", dv)):
        for name, shape in (("pe", (8, dim)), ("w1", (5, 8 * dim)), ("b1", (5,)), ("w2", (dim, 5)),
                            ("b2", (dim,))):
            x[f"phi_{kv}_{name}"] = random.standard_normal(shape) / 3
    return {**{name: value.astype(np.float32) for name, value in x.items()}, **changes}


def without_weights(x):
    return {name: value for name, value in x.items() if not name.startswith("phi")}


class Results(unittest.TestCase):
    """Forward, backward and decode."""

    def assert_near(self, mine, want, stage, name):
        self.assertEqual(mine.shape, want.shape, name)
        if mine.dtype == np.int32:  # blocks: ascending, -1 last, in whatever order they were forced
            want = np.sort(want.view(np.uint32), axis=-1).view(np.int32)
            np.testing.assert_array_equal(mine, want, name)
            return
        self.assertEqual(mine.dtype, np.float64 if stage == "00" else np.float32, name)
        limit = {"00": 1e-9, "04": 4e-2}.get(stage, 1e-4) * max(1, np.abs(want).max(initial=0))
        self.assertLessEqual(np.abs(mine - want).max(initial=0), limit, name)

    def test_vectors(self):
        flags = nsa.BACKWARD | nsa.WANT_BRANCHES | nsa.WANT_IMPORTANCE
        self.assertGreaterEqual(len(VECTORS), 12)
        for stage in STAGES:
            for folder in VECTORS:
                config, inputs, want = read_case(folder)
                self.assertGreater(len(want), 14)
                with self.subTest(stage=stage, case=folder.name), \
                        nsa.Context(stage, config, flags) as ctx:
                    ctx.load(inputs)
                    ctx.forward()
                    ctx.backward()
                    for name, value in want.items():
                        self.assert_near(ctx.read(name), value, stage, name)

    def test_bfloat16(self):
        """A bfloat16 stage is near stage 00 on rounded inputs, with the same blocks."""
        config, inputs, want = read_case(ROOT / "tests" / "vectors" / "packed")
        rounded = {name: value if value.dtype == np.int32 or name == "gate" else
                   round_bfloat16(value.astype(np.float32)) for name, value in inputs.items()}
        names = [name for name in want if name not in ("block_idx", "importance")]
        flags = nsa.BACKWARD | nsa.WANT_BRANCHES
        with nsa.Context("04", config, flags) as ctx, nsa.Context("00", config, flags) as oracle:
            for each, given in ((ctx, inputs), (oracle, rounded)):
                if each is oracle:
                    given = {**given, "block_idx": ctx.read("block_idx")}
                each.load(given)
                each.forward()
                each.backward()
            for name in names:
                self.assert_near(ctx.read(name), oracle.read(name), "04", name)

    def test_dout_after_forward(self):
        config, inputs, want = read_case(ROOT / "tests" / "vectors" / "packed")
        with nsa.Context("02", config, nsa.BACKWARD) as ctx:
            dout = inputs.pop("dout")
            ctx.load(inputs)
            ctx.forward()
            ctx.load_dout(np.asfortranarray(dout))
            ctx.backward()
            for name in ("dq", "dk_slc", "dphi_v_w1"):
                self.assert_near(ctx.read(name), want[name], "02", name)

    def test_rows_and_forced_blocks(self):
        x, rows = make_inputs(), np.array([3, 40, 69], np.int32)
        with nsa.Context("00", CONFIG) as ctx:
            ctx.load(x)
            ctx.forward()
            out, idx = ctx.read("out"), ctx.read("block_idx")
            ctx.load({**x, "rows": rows, "block_idx": idx, "cu_seqlens": None})
            ctx.forward()
            np.testing.assert_array_equal(ctx.read("out"), out[rows])
            idx[:, :, 1:] = -1  # fewer blocks, other results
            ctx.load({**x, "rows": rows, "block_idx": idx})
            ctx.forward()
            self.assertFalse(np.array_equal(ctx.read("out"), out[rows]))

    def test_decode(self):
        """Two slots with prompts of 30 and 37 tokens; every step is the forward's next row."""
        config, x, first = {**CONFIG, "max_seqs": 3, "max_seq_len": 40}, make_inputs(), (0, 33)
        for stage in (*STAGES, "04"):
            with self.subTest(stage=stage), nsa.Context(stage, CONFIG) as whole, \
                    nsa.Context(stage, config, nsa.DECODE) as ctx:
                want = []
                for a, b in ((0, 33), (33, 70)):
                    whole.load({n: v if n.startswith("phi") else v[a:b] for n, v in x.items()})
                    whole.forward()
                    want.append(whole.read("out"))
                slots, lens = (2, 0), [27, 30]
                for slot, a, n in zip(slots, first, lens):
                    ctx.load({**{name: v if name.startswith("phi") else v[a:a + n]
                                 for name, v in x.items()}, "active": np.array([slot], np.int32)})
                    ctx.prefill()
                self.assertEqual([ctx.slot_len(slot) for slot in (0, 1, 2, 3)], [30, 0, 27, -1])
                for _ in range(6):
                    at = [a + n for a, n in zip(first, lens)]
                    step = {name: v[at] for name, v in without_weights(x).items()}
                    ctx.load_step({**step, "active": np.array(slots, np.int32)})
                    ctx.decode()
                    out = ctx.read("out")
                    self.assertEqual(ctx.result("out")[0], (2, 4, 6))
                    for a in (0, 1):
                        self.assert_near(out[a], want[a][lens[a]], stage, "out")
                        lens[a] += 1
                self.assertEqual([ctx.slot_len(2), ctx.slot_len(0)], lens)


class Arrays(unittest.TestCase):
    """What is taken, what is copied, what is written."""

    def setUp(self):
        self.x = make_inputs()
        self.ctx = nsa.Context("01", CONFIG)
        self.addCleanup(self.ctx.close)

    def out(self, x, **more):
        self.ctx.load(x)
        self.ctx.forward()
        return self.ctx.read("out", **more)

    def test_not_contiguous(self):
        want = self.out(self.x)
        self.assertGreater(np.abs(want).max(), 0.1)
        bent = {name: np.asfortranarray(value) for name, value in self.x.items()}
        bent["q"] = np.repeat(self.x["q"], 2, axis=0)[::2]
        self.assertFalse(bent["q"].flags.c_contiguous or bent["k_cmp"].flags.c_contiguous)
        np.testing.assert_array_equal(self.out(bent), want)

    def test_not_aligned(self):
        memory = np.zeros(self.x["q"].nbytes + 1, np.uint8)
        odd = memory[1:].view(np.float32).reshape(self.x["q"].shape)
        odd[:] = self.x["q"]
        self.assertFalse(odd.flags.aligned)
        np.testing.assert_array_equal(self.out({**self.x, "q": odd}), self.out(self.x))

    def test_float64(self):
        want = self.out(self.x)
        wide = {name: value.astype(np.float64) for name, value in self.x.items()}
        np.testing.assert_array_equal(self.out(wide), want)

    def test_read(self):
        want = self.out(self.x)
        self.assertEqual(self.ctx.result("out"), ((70, 4, 6), "float32"))
        self.assertEqual(self.ctx.result("block_idx"), ((70, 2, 4), "int32"))
        mine = np.full((70, 4, 6), np.nan, np.float32)
        self.assertIs(self.ctx.read("out", mine), mine)
        np.testing.assert_array_equal(mine, want)
        wide = self.ctx.read("out", dtype=np.float64)
        self.assertEqual(wide.dtype, np.float64)
        np.testing.assert_array_equal(wide, want)

    def test_no_tokens(self):
        none = {n: v if n.startswith("phi") else v[:0] for n, v in self.x.items()}
        self.assertEqual(self.out(none).shape, (0, 4, 6))

    def test_stream(self):
        """On a device's default stream calls only submit; a read to the host waits."""
        with nsa.Context("03", CONFIG) as ctx:
            outs = []
            for stream in (None, 0):
                if stream is not None:
                    ctx.set_stream(stream)
                ctx.load(self.x)
                ctx.forward()
                outs.append(ctx.read("out"))
            np.testing.assert_array_equal(outs[0], outs[1])
            np.testing.assert_allclose(outs[0], self.out(self.x), atol=1e-4)

    def test_two_contexts(self):
        with nsa.Context("01", CONFIG) as other:
            want = self.out(self.x)
            other.load(make_inputs(2))
            other.forward()
            np.testing.assert_array_equal(self.ctx.read("out"), want)
            self.assertFalse(np.array_equal(other.read("out"), want))


class Refusals(unittest.TestCase):
    """Each has the library's text, or a text of nsa.py, and the context stays usable."""

    def setUp(self):
        self.x = make_inputs()
        self.ctx = nsa.Context("01", CONFIG, nsa.BACKWARD)
        self.addCleanup(self.ctx.close)

    @contextlib.contextmanager
    def refused(self, name, text):
        with self.assertRaises(nsa.NsaError) as caught:
            yield
        self.assertEqual(caught.exception.name, name)
        self.assertIn(text, str(caught.exception))
        self.assertEqual(str(caught.exception).split(":")[0], name)

    def test_inputs(self):
        q, gate = self.x["q"], self.x["gate"].copy()
        gate[3, 2, 1] = 1.5
        cases = (
            ({"q": q[:, :, :7]}, "q has shape [70,4,7], expected [70,4,8]"),
            ({"q": q[:, 0]}, "q has shape [70,8], expected [70,4,8]"),
            ({"q": q[None]}, "q has 4 dimensions, 3 at most"),
            ({"q": np.zeros((71, 4, 8), np.float32)}, "q holds 71 tokens, seq_len is 70"),
            ({"k_win": self.x["k_win"][:-1]}, "k_win has shape [69,2,8], expected [70,2,8]"),
            ({"q": q.astype(np.int32)}, "q is int32, expected float32"),
            ({"q": q.astype(np.float16)}, "q is float16, which is no type of the library"),
            ({"q": q.astype(">f4")}, "q is >f4, which is no type of the library"),
            ({"q": q.tolist()}, "q is a list, no NumPy array or tensor"),
            ({"cu_seqlens": np.array([0, 70])}, "cu_seqlens is int64, which is no type"),
            ({"cu_seqlens": np.array([0, 60], np.int32)}, "cu_seqlens ends with 60, expected T"),
            ({"gate": gate}, "gate[3,2,1] = 1.5 is not in [0,1]"),
            ({"v_slc": None}, "v_slc is missing"),
            ({"phi_k_w": self.x["phi_k_b2"]}, 'phi_k_w is given, but phi "mlp" has no such weight'),
            ({"out": q}, "out is a result, not an input"),
            ({"active": np.array([0], np.int32)}, "active is not an input of a load without"),
            ({"k_cpm": q}, 'no tensor is called "k_cpm"'),
        )
        for changes, text in cases:
            with self.subTest(text), self.refused("bad input", text):
                self.ctx.load({**self.x, **changes})
        self.ctx.load(self.x)
        self.ctx.forward()
        self.assertTrue(np.isfinite(self.ctx.read("out")).all())

    def test_order(self):
        with self.refused("calls out of order", "forward needs a load"):
            self.ctx.forward()
        with self.refused("calls out of order", "out does not exist yet"):
            self.ctx.read("out")
        self.ctx.load(self.x)
        self.ctx.forward()
        with self.refused("calls out of order", "backward needs load, forward and load_dout"):
            self.ctx.backward()
        with self.refused("calls out of order", "prefill needs a context opened with NSA_DECODE"):
            self.ctx.prefill()
        with self.refused("bad input", "dout has shape [1,4,6], expected [70,4,6]"):
            self.ctx.load_dout(np.zeros((1, 4, 6), np.float32))

    def test_read(self):
        self.ctx.load(self.x)
        self.ctx.forward()
        shape = (70, 4, 6)
        fixed = np.zeros(shape, np.float32)
        fixed.flags.writeable = False
        for out, text in ((np.zeros((70, 4, 5), np.float32), "not of the result's"),
                          (np.zeros(shape), "not of the result's"),
                          (np.zeros(shape, np.float32, "F"), "out is to be read into, but is not"),
                          (fixed, "out is read-only")):
            with self.subTest(text), self.refused("bad input", text):
                self.ctx.read("out", out)
        with self.refused("bad input", "result -1 is not a tensor's number"):
            self.ctx.read("outs")
        with self.refused("bad input", "q is an input, not a result"):
            self.ctx.read("q")

    def test_closed(self):
        self.ctx.close()
        self.ctx.close()
        for call in (lambda: self.ctx.load(self.x), self.ctx.forward, self.ctx.backward,
                     lambda: self.ctx.read("out"), lambda: self.ctx.slot_len(0),
                     lambda: self.ctx.load_dout(self.x["q"])):
            with self.refused("calls out of order", "this context is closed"):
                call()

    def test_open(self):
        for changes, text in (({"qk_dim": 0}, "qk_dim"), ({"windows": 3}, 'unknown key "windows"'),
                              ({"window": 1.5}, "window 1.5 is not a whole number"),
                              ({"phi": "men"}, "men"), ({"q_heads": 3}, "q_heads 3 is not a mult")):
            with self.subTest(text), self.refused("bad config", text):
                nsa.Context("01", {**CONFIG, **changes})
        with self.refused("input/output error", 'no stage "77"'):
            nsa.Context("77", CONFIG)

    def test_stream_of_a_cpu(self):
        with self.refused("not supported by this stage", "which has no streams"):
            self.ctx.set_stream(0)


if __name__ == "__main__":
    unittest.main()
