"""The command line as a user has it: what it prints where, and its exit status.

In this process, but for environment variables, clusters and terminals: there are 200 commands here,
and a new process takes most of a second to begin.
"""

import ast
import contextlib
import io
import json
import math
import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import fastce
from fastce import _cli as cli
from fastce._cli import CommandError, main
from fastce._cli._npy import open_array
from fastce._runtime.dispatch import BACKENDS

ROWS, CLASSES = 60, 17


def run(*args, cwd=".", **env):
    """``fastce`` with these arguments; a traceback is never what a user should see."""
    args = [*map(str, args)]
    if env or "--dask" in args:
        command = [sys.executable, "-m", "fastce", *args]
        done = subprocess.run(
            command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=300
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done
    shown, complaints = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(shown),
        contextlib.redirect_stderr(complaints),
    ):
        try:
            status = main(args)
        except SystemExit as stop:  # argparse
            status = stop.code
    return subprocess.CompletedProcess(args, status, shown.getvalue(), complaints.getvalue())


def loss(*args, cwd=".", **env):
    """What ``fastce loss --json`` prints, as a dict."""
    done = run("loss", *args, "--json", cwd=cwd, **env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def truth(x, t, axis=-1, ignore_index=-100, label_smoothing=0.0):
    """Mean cross-entropy, accuracy and the number of rows that count, in float64."""
    x = np.moveaxis(x.astype(np.float64), axis, -1)
    log_p = x - np.logaddexp.reduce(x, axis=-1, keepdims=True)
    if t.ndim == x.ndim:
        q = np.moveaxis(t.astype(np.float64), axis, -1)
        label, kept = q.argmax(-1), np.ones(x.shape[:-1], bool)
    else:
        kept = t != ignore_index
        label = np.where(kept, t, 0).astype(np.int64)
        q = np.eye(x.shape[-1])[label]
    q = (1 - label_smoothing) * q + label_smoothing / x.shape[-1]
    rows = -np.sum(q * log_p, axis=-1)[kept]
    return rows.mean(), np.mean((x.argmax(-1) == label)[kept]), rows.size


def check(result, x, t, **options):
    mean, accuracy, counted = truth(x, t, **options)
    assert result["cross_entropy"] == pytest.approx(mean, rel=1e-6)
    assert result["cross_entropy_bits"] == pytest.approx(mean / math.log(2), rel=1e-6)
    plain = truth(x, t, **options | {"label_smoothing": 0.0})[0]
    assert result["perplexity"] == pytest.approx(math.exp(plain), rel=1e-5)
    assert result["accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert result["counted"] == counted
    assert result["first_nan_row"] is None


@pytest.fixture
def data(tmp_path):
    """Logits that are right now and then, and targets of which some are ignored."""
    rng = np.random.default_rng(7)
    t = rng.integers(0, CLASSES, ROWS)
    x = (3 * rng.standard_normal((ROWS, CLASSES))).astype(np.float32)
    x[np.arange(0, ROWS, 2), t[::2]] += 6
    t[[3, 44]] = -100
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "t.npy", t)
    return tmp_path, x, t


# info, help, settings


def test_info():
    done = run("info", FASTCE_NUM_THREADS="3")
    assert done.returncode == 0
    for expected in ("fastce ", "numpy ", "isa level", "threads       3", "reference", "ml_dtypes"):
        assert expected in done.stdout
    assert "FASTCE_NUM_THREADS=3" in done.stdout


def test_info_json():
    facts = json.loads(run("info", "--json").stdout)
    assert facts["backends"]["reference"] is None
    assert facts["isa_level"] in facts["isa_levels"]
    assert facts["packages"]["ml_dtypes"]


@pytest.mark.parametrize(
    ("variable", "value"), [("FASTCE_ISA", "pentium"), ("FASTCE_NUM_THREADS", "many")]
)
def test_info_says_which_setting_is_wrong(variable, value):
    done = run("info", **{variable: value})
    assert done.returncode == 1
    assert variable in done.stderr
    assert value in done.stderr
    assert done.stderr.count("\n") == 1


def test_wrong_settings_stop_loss(data):
    done = run("loss", "x.npy", "t.npy", cwd=data[0], FASTCE_BACKEND="abacus")
    assert done.returncode == 1
    known = ", ".join((*BACKENDS, "cuda"))
    assert done.stderr == f"fastce loss: unknown backend 'abacus'; there are {known}\n"


def test_what_the_commands_import():
    """Extras of the command line, and no library that fastce is compared with."""
    packages = set()
    for path in Path(cli.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                packages |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                packages.add(node.module.partition(".")[0])
    extras = {"rich", "dask", "distributed", "zarr"}
    assert packages - sys.stdlib_module_names == {"numpy", "fastce", *extras}


def test_help_is_quick():
    """It imports neither what only some sub-commands use nor what only extras bring."""
    code = (
        "import sys\n"
        "from fastce._cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'rich', 'matplotlib', 'scipy', 'zipfile', 'fastce._cli.loss'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in ("info", "bench", "loss"))


def test_a_reader_that_stops_early():
    """As in ``fastce info | head -1``: no complaint."""
    command = [sys.executable, "-m", "fastce", "info"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize(
    ("command", "status", "shown", "complaint"),
    [
        ("-m fastce info >&-", 1, "", "fastce info: standard output is closed\n"),
        ("-m fastce info >/dev/full", 1, "", "fastce info: [Errno 28] No space left on device\n"),
        ("-m fastce --help >/dev/full", 1, "", "fastce: [Errno 28] No space left on device\n"),
        ("-u -m fastce --help >/dev/full", 1, "", "fastce: [Errno 28] No space left on device\n"),
        ("-m fastce --version 2>&-", 0, f"fastce {fastce.__version__}\n", ""),
        ("-m fastce loss x.npy t.npy 2>&-", 1, "", ""),
        ("-m fastce loss x.npy t.npy 2>/dev/full", 1, "", ""),
        ("-m fastce loss 2>/dev/full", 2, "", ""),
        ("-m fastce loss x.npy t.npy <&- >&- 2>&-", 1, "", ""),
    ],
)
def test_a_stream_that_is_closed_or_full(tmp_path, command, status, shown, complaint):
    """Results that cannot be written are a failure; messages that cannot be change nothing."""
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" {command}'], cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (status, shown, complaint)


def test_without_a_command_there_is_help():
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run("--help").stdout


@pytest.mark.parametrize("args", [("--help",), ("--version",), ("info", "-h"), ("loss", "-h")])
def test_help(args):
    done = run(*args)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("los",), "invalid choice: 'los'"),
        (("info", "--yaml"), "unrecognized arguments: --yaml"),
        (("loss", "x.npy"), "required: TARGETS"),
        (("loss", "x", "t", "--label-smoothing", "2"), "must be from 0 to 1, got 2"),
        (("loss", "x", "t", "--chunk-mb", "0"), "must be positive, got 0"),
        (("loss", "x", "t", "--chunk-mb", "nan"), "must be positive, got nan"),
        (("loss", "x", "t", "--chunk-mb", "1e303"), "must be positive, got 1e303"),
        (("loss", "x", "t", "--chunk-mb", "all"), "invalid megabytes value: 'all'"),
        (("info", "\x1b[31m"), "unrecognized arguments: \\x1b[31m"),
        (("loss", "x", "t", "--axis", "last"), "invalid int value: 'last'"),
        (("loss", "x", "t", "--dtype", "fp8"), "invalid choice: 'fp8'"),
        (("loss", "x", "t", "--ignore-index", f"{2**63}"), f"must fit 64 bits, got {2**63}"),
        (("loss", "x", "t", "--dask", ""), "must not be empty"),
    ],
)
def test_wrong_command_line(args, message):
    done = run(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr


# loss: values


def test_loss_prints_the_numbers(data):
    folder, x, t = data
    done = run("loss", "x.npy", "t.npy", cwd=folder)
    mean, accuracy, counted = truth(x, t)
    assert done.returncode == 0
    assert float(re.search("cross-entropy +(.*) nats", done.stdout)[1]) == pytest.approx(mean)
    assert f"{accuracy:.4%} ({round(accuracy * counted)} of 58 rows)" in done.stdout
    assert "58 counted, 2 ignored" in done.stdout
    plain = re.search("perplexity.*", done.stdout)[0]
    smoothed = run("loss", "x.npy", "t.npy", "--label-smoothing=0.3", cwd=folder).stdout
    assert f"{plain} (without label smoothing)" in smoothed


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", ">f4", ">f8", "i4", "u1"])
@pytest.mark.parametrize("label_dtype", ["i8", ">i2"])
def test_loss_dtypes(data, dtype, label_dtype):
    folder, x, t = data
    x = np.abs(x).astype(dtype)
    np.save(folder / "x.npy", x)
    np.save(folder / "t.npy", t.astype(label_dtype))
    check(loss("x.npy", "t.npy", cwd=folder), x, t)


def test_loss_unsigned_labels(data):
    folder, x, t = data
    t = np.where(t < 0, 255, t).astype(np.uint8)
    np.save(folder / "t.npy", t)
    result = loss("x.npy", "t.npy", "--ignore-index", 255, cwd=folder)
    check(result, x, t, ignore_index=255)
    assert result["ignored"] == 2


@pytest.mark.parametrize("saved_as", ["bfloat16", "uint16"])
@pytest.mark.parametrize("chunk_mb", [32, 0.0002])
def test_loss_bfloat16(data, saved_as, chunk_mb):
    folder, x, t = data
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    x = x.astype(bfloat16)
    np.save(folder / "x.npy", x if saved_as == "bfloat16" else x.view(np.uint16))
    check(loss("x.npy", "t.npy", "--dtype=bfloat16", "--chunk-mb", chunk_mb, cwd=folder), x, t)


def test_loss_probabilities(data):
    folder, x, _ = data
    t = np.random.default_rng(1).dirichlet(np.ones(CLASSES), ROWS).astype(np.float32)
    np.save(folder / "t.npy", t)
    args = ("x.npy", "t.npy", "--label-smoothing", 0.2, "--chunk-mb", 0.001)
    check(loss(*args, cwd=folder), x, t, label_smoothing=0.2)


@pytest.mark.parametrize("options", [(), ("--label-smoothing", "0.1", "--ignore-index", "4")])
def test_loss_options(data, options):
    folder, x, t = data
    t[t == -100] = 5
    np.save(folder / "t.npy", t)
    ignore_index = 4 if options else -100
    expected = {"label_smoothing": 0.1 if options else 0.0, "ignore_index": ignore_index}
    check(loss("x.npy", "t.npy", *options, cwd=folder), x, t, **expected)


@pytest.mark.parametrize("stored", ["npy", "npz", "compressed"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape_axis", [((60, 17), -1), ((17, 60), 0), ((6, 17, 5, 2), 1)])
def test_loss_is_the_same_however_the_file_lies(tmp_path, stored, order, shape_axis):
    """Every container, order of axes and size of block, down to one row.

    In float64: a float32 loss of a row may round differently where the row lies differently.
    """
    shape, axis = shape_axis
    rng = np.random.default_rng(3)
    x = np.asarray(rng.standard_normal(shape), order=order)
    t = np.asarray(rng.integers(0, 17, np.delete(shape, axis)), order=order)
    if stored == "npy":
        np.save(tmp_path / "x", x)
        np.save(tmp_path / "t", t)
        args = ["x.npy", "t.npy"]
    else:
        save = np.savez if stored == "npz" else np.savez_compressed
        save(tmp_path / "both", logits=x, labels=t)
        args = ["both.npz", "both.npz", "--key-logits=logits", "--key-targets=labels"]
    results = [
        loss(*args, "--axis", axis, "--chunk-mb", chunk_mb, cwd=tmp_path)
        for chunk_mb in (32, 0.0007, 1e-6)
    ]
    for result in results:
        check(result, x, t, axis=axis)
        assert result["cross_entropy"] == pytest.approx(results[0]["cross_entropy"], rel=1e-14)
        assert result["correct"] == results[0]["correct"]


@pytest.mark.parametrize("padding", range(4))
def test_loss_unaligned_in_an_archive(data, padding):
    """Within an .npz the data may lie at any byte: here the name of the member shifts it."""
    folder, x, t = data
    name = "x" * (1 + padding)
    np.savez(folder / "x.npz", **{name: x})
    np.savez(folder / "t.npz", **{name: t})
    check(loss("x.npz", "t.npz", cwd=folder), x, t)


def test_loss_of_one_row(tmp_path):
    np.save(tmp_path / "x.npy", np.array([1.0, 2.0, 3.0]))
    np.save(tmp_path / "t.npy", np.array(2))
    result = loss("x.npy", "t.npy", cwd=tmp_path)
    assert result["cross_entropy"] == pytest.approx(0.40760596444438013, rel=1e-14)
    assert (result["accuracy"], result["counted"]) == (1.0, 1)


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2"])
def test_accuracy_counts_the_first_of_equal_logits(tmp_path, dtype):
    x = [[1, 1, 0], [-2, -1, -1], [-0.0, 0.0, -1], [-1, 0.0, -0.0], [-np.inf, -9, -8], [1, 2, 3]]
    np.save(tmp_path / "x.npy", np.array(x, dtype))
    for labels, right in (([0, 1, 0, 1, 2, 2], 6), ([1, 2, 1, 2, 1, 1], 0)):
        np.save(tmp_path / "t.npy", np.array(labels))
        assert loss("x.npy", "t.npy", cwd=tmp_path)["correct"] == right


@pytest.mark.parametrize("chunk_mb", [32, 0.0003])
def test_loss_names_the_first_nan(data, chunk_mb):
    folder, x, _ = data
    x[[3, 50, 31]] = np.nan  # row 3 is ignored
    np.save(folder / "x.npy", x)
    args = ("x.npy", "t.npy", "--chunk-mb", chunk_mb)
    result = loss(*args, cwd=folder)
    assert result["cross_entropy"] == result["perplexity"] == "NaN"
    assert result["first_nan_row"] == [31]
    assert "row [31] is the first" in run("loss", *args, cwd=folder).stdout


def test_infinite_loss(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[0.0, -np.inf], [0.0, 1.0]]))
    np.save(tmp_path / "t.npy", np.array([1, 1]))
    result = loss("x.npy", "t.npy", cwd=tmp_path)
    assert result["cross_entropy"] == result["perplexity"] == "Infinity"
    assert float(result["cross_entropy"]) == math.inf  # it reads back as a number
    assert (result["accuracy"], result["first_nan_row"]) == (0.5, None)


def test_perplexity_may_overflow(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[0.0, 1e4]]))
    np.save(tmp_path / "t.npy", np.array([0]))
    result = loss("x.npy", "t.npy", cwd=tmp_path)
    assert (result["cross_entropy"], result["perplexity"]) == (1e4, "Infinity")


def test_every_row_ignored(data):
    folder, _, t = data
    np.save(folder / "t.npy", np.full_like(t, -100))
    done = run("loss", "x.npy", "t.npy", cwd=folder)
    assert done.returncode == 0
    assert "nan nats" in done.stdout
    assert "Every row is ignored" in done.stdout


# loss: bad files. Each writes x.npy, t.npy or both anew into a folder that has good ones.


def truncate(path, by):
    path.write_bytes(path.read_bytes()[:-by])


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


def saved(name, array, **options):
    return lambda folder: np.save(folder / name, array, **options)


def zipped(name, compressed=True, **arrays):
    save = np.savez_compressed if compressed else np.savez
    return lambda folder: save(folder / name, **arrays)


def label(value, at):
    def write(folder):
        t = np.load(folder / "t.npy")
        t[at] = value
        np.save(folder / "t.npy", t)

    return write


def encrypted(folder):
    """NumPy cannot write one: mark a plain one as such."""
    np.savez(folder / "x.npz", x=np.zeros(3))
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content = (folder / "x.npz").read_bytes()
        flip_at = content.index(signature) + at
        (folder / "x.npz").write_bytes(
            content[:flip_at] + bytes([content[flip_at] | 1]) + content[flip_at + 1 :]
        )


def no_arrays(folder):
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")


def pytorch(folder):
    """As torch.save writes it."""
    with zipfile.ZipFile(folder / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"")


DESCRIBED = "{{'descr': '<f4', 'fortran_order': False, 'shape': {}}}"


def with_header(text, version=1):
    """How an .npy file begins."""
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode()


def header(text, version=1):
    return lambda folder: (folder / "x.npy").write_bytes(with_header(text, version) + bytes(4096))


def member(method, shape=(60, 17), damaged=None, **changed):
    """An archive that is packed by `method`, of which a field in the directory says what is not so,
    or a byte is damaged.
    """

    def write(folder):
        with zipfile.ZipFile(folder / "x.npz", "w", method) as archive:
            info = zipfile.ZipInfo("x.npy")
            info.compress_type = method
            with archive.open(info, "w", force_zip64=True) as file:
                file.write(with_header(DESCRIBED.format(shape)) + NOISE.tobytes())
            for name, value in changed.items():
                setattr(info, name, value)
        if damaged:
            flip(folder / "x.npz", damaged)

    return write


NOISE = np.random.default_rng(0).standard_normal((ROWS, CLASSES)).astype(np.float32)
BAD = {
    "missing": (lambda d: (d / "x.npy").unlink(), "x.npy", "cannot read x.npy: No such file"),
    "a folder": (
        lambda d: (d / "x").mkdir(), "x",
        "cannot read x: Is a directory; a Zarr store needs --dask",
    ),
    "no file": (lambda d: (d / "x.npy").write_bytes(b""), "x.npy", "not an .npy or .npz file"),
    "text": (lambda d: (d / "x.npy").write_text("1 2\n" * 9), "x.npy", "not an .npy or .npz file"),
    "header": (lambda d: flip(d / "x.npy", 15), "x.npy", "not an .npy or .npz file"),
    "version": (lambda d: flip(d / "x.npy", 6), "x.npy", r"format version \(254, 0\), not 1.0"),
    "unhashable key": (header("{[1]: 2}"), "x.npy", "its header is damaged"),
    "keys of two kinds": (header("{1: 2, 'a': 3}"), "x.npy", "its header is damaged"),
    "no dtype": (
        header("{'descr': (), 'fortran_order': False, 'shape': (60, 17)}"), "x.npy",
        "its header is damaged",
    ),
    "minus signs": (header("-" * 9000 + "1"), "x.npy", "its header is damaged"),
    "brackets": (header("(" * 9000), "x.npy", "its header is damaged"),
    "a number that warns": (header("{'shape': (1if 1else 2,)}"), "x.npy", "its header is damaged"),
    "a long header": (header(" " * 11000, version=2), "x.npy", "its header is damaged"),
    "a shape beyond all files": (
        header(DESCRIBED.format(f"({'9' * 4000}, {'9' * 4000})")), "x.npy",
        "the header of x.npy is damaged: no file holds so large a shape",
    ),
    "70 axes": (
        header(DESCRIBED.format((60, 17) + (1,) * 68)), "x.npy", "t.npy has shape",
    ),
    "lzma": (member(zipfile.ZIP_LZMA, damaged=200), "x.npz", "cannot read x.npz: Corrupt input"),
    "lzma options": (member(zipfile.ZIP_LZMA, damaged=68), "x.npz", "cannot read x.npz: "),
    "bz2": (member(zipfile.ZIP_BZIP2, damaged=100), "x.npz", "cannot read x.npz: Invalid data"),
    "deflate": (
        member(zipfile.ZIP_DEFLATED, damaged=2000), "x.npz", r"cannot read x.npz\[x\]: ",
    ),
    "a packed size that lies": (
        member(zipfile.ZIP_DEFLATED, file_size=200), "x.npz", "cannot read x.npz: Bad CRC-32",
    ),
    "a packed shape that lies": (
        member(
            zipfile.ZIP_DEFLATED, shape=(60, 2**50), file_size=2**62
        ), "x.npz", r"cannot read x.npz\[x\]: Unable to allocate",
    ),
    "a place that lies": (member(zipfile.ZIP_STORED, header_offset=2**62), "x.npz", "x.npz"),
    "control characters": (
        lambda d: None, "\x1b[31m\x9b\x07\u202e.npy",
        r"cannot read \\x1b\[31m\\x9b\\x07\\u202e.npy: No such file",
    ),
    "control characters in an archive": (
        zipped("x.npz", **{"\x1b[2J": NOISE, "b": NOISE}), "x.npz", r"it has \\x1b\[2J, b$",
    ),
    "pickled": (saved("x.npy", np.array([{}], object)), "x.npy", "holds pickled Python objects"),
    "truncated": (
        lambda d: truncate(d / "x.npy", 5), "x.npy",
        r"x.npy is truncated: shape \(60, 17\) of float32 takes 4080 bytes, 4075 are there",
    ),
    "complex": (saved("x.npy", NOISE + 1j), "x.npy", "x.npy must hold .* not complex64"),
    "text array": (saved("x.npy", np.full((60, 17), "a")), "x.npy", "must hold .* not <U1"),
    "long double": (saved("x.npy", NOISE.astype("longdouble")), "x.npy", "must hold .* not float"),
    "raw": (saved("x.npy", NOISE.astype("f2").view("V2")), "x.npy", "say so with --dtype bfloat16"),
    "0-d": (saved("x.npy", np.float64(3)), "x.npy", r"has shape \(\): no axis -1"),
    "no rows": (saved("x.npy", NOISE[:0]), "x.npy", r"x.npy is empty: its shape is \(0, 17\)"),
    "no classes": (saved("x.npy", NOISE[:, :0]), "x.npy", r"empty: its shape is \(60, 0\)"),
    "other rows": (
        saved("x.npy", NOISE[1:]), "x.npy",
        r"t.npy has shape \(60,\); for logits \(59, 17\) and axis -1 it must be \(59,\) "
        r"\(class indices\) or \(59, 17\) \(probabilities\)",
    ),
    "axis": (lambda d: None, "x.npy --axis 2", r"x.npy has shape \(60, 17\): no axis 2"),
    "not bfloat16": (lambda d: None, "x.npy --dtype bfloat16", "x.npy holds float32, not bfloat16"),
    "key of .npy": (lambda d: None, "x.npy --key-logits a", "not an .npz file: .* named 'a'"),
    "label": (
        label(17, 41), "x.npy --chunk-mb 0.0005",
        r"t.npy: target\[41\] is 17, out of range for 17 classes \(--ignore-index is -100\)",
    ),
    "negative label": (label(-1, 41), "x.npy", r"t.npy: target\[41\] is -1, out of range"),
    "huge label": (
        saved("t.npy", np.full(ROWS, 2**64 - 1, np.uint64)), "x.npy",
        r"target\[0\] is 18446744073709551615, out of range",
    ),
    "float labels": (saved("t.npy", np.zeros(ROWS)), "x.npy", "integer class indices, not float64"),
    "bool labels": (saved("t.npy", np.zeros(ROWS, bool)), "x.npy", "class indices, not bool"),
    "one-hot": (saved("t.npy", NOISE.astype(int)), "x.npy", "must hold probabilities, not int64"),
    "ignored probabilities": (
        saved("t.npy", NOISE), "x.npy --ignore-index 3", "--ignore-index has no meaning",
    ),
    "several": (zipped("x.npz", a=NOISE, b=NOISE), "x.npz", "by its name: it has a, b"),
    "no such array": (
        zipped("x.npz", a=NOISE, b=NOISE), "x.npz --key-logits c",
        "x.npz has no array named 'c': it has a, b",
    ),
    "no arrays": (no_arrays, "x.npz", "x.npz is a zip archive without .npy arrays"),
    "PyTorch": (pytorch, "x.pt", "x.pt is a file of PyTorch, not an .npz file: save each tensor"),
    "truncated archive": (
        lambda d: (zipped("x.npz", a=NOISE)(d), truncate(d / "x.npz", 30)), "x.npz",
        "cannot read x.npz: File is not a zip file",
    ),
    "damaged archive": (
        lambda d: (zipped("x.npz", a=NOISE)(d), flip(d / "x.npz", 2000)), "x.npz",
        r"cannot read x.npz\[a\]: ",
    ),
    "encrypted": (encrypted, "x.npz", "encrypted"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_bad_input(data, bad):
    folder = data[0]
    spoil, args, message = BAD[bad]
    spoil(folder)
    logits, *options = args.split()
    done = run("loss", logits, "t.npy", *options, cwd=folder)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("fastce loss: ")
    assert done.stderr.count("\n") == 1
    assert re.search(message, done.stderr), done.stderr


def test_bad_label_is_named_by_its_place_in_the_file(tmp_path):
    """More than one axis of rows, and the block that holds it begins elsewhere."""
    t = np.zeros((4, 3, 5), np.int64)
    t[2, 1, 3] = 9
    np.save(tmp_path / "t.npy", t)
    np.save(tmp_path / "x.npy", np.zeros((4, 7, 3, 5), np.float32))
    done = run("loss", "x.npy", "t.npy", "--axis=1", "--chunk-mb=0.0001", cwd=tmp_path)
    assert "target[2, 1, 3] is 9, out of range for 7 classes" in done.stderr


@pytest.mark.parametrize("order", ["C", "F"])
def test_file_cut_while_it_is_read(data, order):
    """A mapping of it would end this process with SIGBUS."""
    folder, x, _ = data
    np.save(folder / "x.npy", np.asarray(x, order=order))
    with open_array(str(folder / "x.npy")) as array:
        array.block(np.s_[0:10, :])
        truncate(folder / "x.npy", 2000)
        with pytest.raises(CommandError, match=r"x\.npy is truncated$"):
            array.block(np.s_[50:60, :])


def test_a_row_that_memory_does_not_hold(tmp_path):
    """One row of 2**43 bytes, which take no space on the disk."""
    with open(tmp_path / "x.npy", "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (1, 2**41)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 2**43)
    np.save(tmp_path / "t.npy", np.zeros(1, np.int64))
    done = run("loss", "x.npy", "t.npy", cwd=tmp_path)
    assert done.returncode == 1
    assert re.fullmatch("fastce loss: cannot read x.npy: Unable to allocate .*\n", done.stderr)


# loss: size and progress


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["C", "F", "compressed"])
def test_memory_is_bounded(tmp_path, kind):
    """The peak of a file of 200 MB is that of a small one and a few blocks."""

    def peak(rows):
        if kind == "compressed":
            np.savez_compressed(tmp_path / "x.npz", np.zeros((rows, 1000), np.float32))
        else:
            with open(tmp_path / "x.npz", "wb") as file:  # zeros that take no space on disk
                header = {"descr": "<f4", "fortran_order": kind == "F", "shape": (rows, 1000)}
                np.lib.format.write_array_header_1_0(file, header)
                file.truncate(file.tell() + rows * 4000)
        np.save(tmp_path / "t.npy", np.zeros(rows, np.int8))
        # Not ru_maxrss: a child inherits that of pytest.
        code = (
            "from fastce._cli import main\n"
            "assert main(['loss', 'x.npz', 't.npy', '--chunk-mb', '2']) == 0\n"
            "print(open('/proc/self/status').read())\n"
        )
        shown = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, text=True)
        return int(re.search(r"VmHWM:\s+(\d+) kB", shown)[1]) / 1024  # MiB

    small, big = peak(1000), peak(50_000)
    assert big < small + 16


def on_a_terminal(args, cwd, env):
    """What a command writes to a terminal on its stderr."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "fastce", *args], cwd=cwd, env=os.environ | env,
        stdout=subprocess.DEVNULL, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # the other end is closed: Linux says so in this way
            piece = b""
        if not piece:
            break
        shown += piece
    os.close(ours)
    assert process.wait() == 0
    return shown.decode()


@pytest.mark.parametrize("rich", [True, False])
def test_progress(data, rich):
    folder = data[0]
    np.save(folder / "x.npy", np.zeros((4000, 1000), np.float32))
    np.save(folder / "t.npy", np.zeros(4000, np.int64))
    env = {"TERM": "xterm", "COLUMNS": "120"}
    if rich:
        pytest.importorskip("rich")
    else:  # as where the extra "cli" is not installed
        (folder / "rich.py").write_text("raise ImportError('not here')")
        env["PYTHONPATH"] = str(folder)
    shown = on_a_terminal(["loss", "x.npy", "t.npy", "--chunk-mb", "0.04"], folder, env)
    assert "of 4,000 rows" in shown
    assert "MB/s" in shown
    assert "loss 6.9077" in shown


# loss --dask


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of two processes."""
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as running:
        yield running.scheduler_address


def on_cluster(address, folder, *args, **env):
    """The numbers of ``--dask`` are those of without; they are returned."""
    results = [
        loss(*args, *extra, cwd=folder, **env)
        for extra in ((), ("--chunk-mb", "0.001", "--dask", address))
    ]
    for result in results:
        del result["seconds"], result["mb_per_second"]
    for name, value in results[0].items():
        assert results[1][name] == (
            pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
        )
    return results[1]


def test_loss_on_a_cluster(data, cluster):
    """Probabilities, NaN, bfloat16, another axis and an archive."""
    folder, x, t = data
    check(on_cluster(cluster, folder, "x.npy", "t.npy"), x, t)
    np.savez(folder / "both.npz", x=x.T, soft=np.eye(CLASSES)[np.maximum(t, 0)].T)
    keys = "--axis=0", "--key-logits=x", "--key-targets=soft", "--label-smoothing=0.1"
    on_cluster(cluster, folder, "both.npz", "both.npz", *keys)
    x[31, 2] = np.nan
    np.save(folder / "x.npy", x)
    assert on_cluster(cluster, folder, "x.npy", "t.npy")["first_nan_row"] == [31]
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    np.save(folder / "x.npy", x.astype(bfloat16))
    on_cluster(cluster, folder, "x.npy", "t.npy", "--dtype=bfloat16")


def test_loss_of_a_zarr_store(data, cluster):
    """In chunks of rows and of classes."""
    zarr = pytest.importorskip("zarr", reason="Zarr is not installed")
    folder, x, t = data
    zarr.create_array(folder / "x.zarr", shape=x.shape, chunks=(7, 5), dtype=x.dtype)[...] = x
    result = loss("x.zarr", "t.npy", "--dask", cluster, cwd=folder)
    check(result, x, t)


def test_bad_input_on_a_cluster(data, cluster):
    folder, x, t = data
    np.savez_compressed(folder / "x.npz", x=x)
    (folder / "empty.zarr").mkdir()
    t[41] = 17
    np.save(folder / "t.npy", t)
    for logits, address, message in (
        ("x.npy", cluster, r"t.npy: target\[41\] is 17, out of range .*--ignore-index is -100"),
        ("x.npz", cluster, r"x.npz\[x\] is compressed"),
        ("empty.zarr", cluster, "cannot read empty.zarr as a Zarr array"),
        ("x.npy", "tcp://127.0.0.1:9", "--dask tcp://127.0.0.1:9: "),
    ):
        done = run("loss", logits, "t.npy", "--dask", address, cwd=folder,
            DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="2s")  # fmt: skip
        assert done.returncode == 1
        assert done.stdout == ""
        assert re.search(f"^fastce loss: {message}", done.stderr, re.MULTILINE), done.stderr


def test_damaged_store_on_a_cluster(data, cluster):
    """Its metadata, then one of its chunks."""
    zarr = pytest.importorskip("zarr", reason="Zarr is not installed")
    folder, x, _ = data
    zarr.create_array(folder / "x.zarr", shape=x.shape, chunks=x.shape, dtype=x.dtype)[...] = x
    metadata = folder / "x.zarr" / "zarr.json"
    good = metadata.read_text()
    metadata.write_text(good.replace('"shape": [', '"shape": [null, '))
    done = run("loss", "x.zarr", "t.npy", "--dask", cluster, cwd=folder)
    assert done.returncode == 1
    assert done.stderr.startswith("fastce loss: cannot read x.zarr as a Zarr array: ")
    metadata.write_text(good)
    (folder / "x.zarr" / "c" / "0" / "0").write_bytes(b"no chunk")
    done = run("loss", "x.zarr", "t.npy", "--dask", cluster, cwd=folder)
    assert done.returncode == 1
    assert f"fastce loss: --dask {cluster}: " in done.stderr


def test_file_cut_under_dask(data):
    """Each task opens it anew, and names it."""
    pytest.importorskip("distributed", reason="distributed is not installed")
    from fastce._cli._dask import Blocks

    folder = data[0]
    blocks = Blocks(str(folder / "x.npy"), None).dask_array(1, 1e6)
    truncate(folder / "x.npy", 2000)
    with pytest.raises(CommandError, match=r"x\.npy is truncated: "):
        blocks.compute(scheduler="synchronous")


def test_loss_on_a_cluster_of_its_own(data):
    pytest.importorskip("distributed", reason="distributed is not installed")
    folder, x, t = data
    check(loss("x.npy", "t.npy", "--dask", "local", cwd=folder), x, t)


def test_a_store_that_a_worker_does_not_see_is_no_zeros(tmp_path, monkeypatch):
    zarr = pytest.importorskip("zarr", reason="Zarr is not installed")
    pytest.importorskip("distributed", reason="distributed is not installed")
    from fastce._cli._dask import Store

    monkeypatch.chdir(tmp_path)
    zarr.create_array("x.zarr", shape=(4, 6), chunks=(2, 3), dtype="f4")[...] = 1.0
    array = Store("x.zarr", None).dask_array(1, 1e6)
    assert array.sum().compute() == 24
    os.rename("x.zarr", "elsewhere.zarr")
    with pytest.raises(FileNotFoundError):
        array.sum().compute()
