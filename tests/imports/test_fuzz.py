"""Damaged and hostile files: an error of one line or a valid set, never a crash, a hang, a bomb or a command.

Mutations are seeded. Archives are mutated twice over: as bytes, where the checksums catch most, and inside, member by
member with new checksums, so that the readers behind see them.
"""

import io
import pickle
import random
import signal
import struct
import tracemalloc
import zipfile
from contextlib import contextmanager

import msgpack
import numpy as np
import official_files as official
import pytest
import torch
from PIL import Image

import bench.data
from bench import imports
from bench.distilled import check
from bench.errors import UserError
from bench.imports import Choice, torch_file
from bench.imports.make import assemble
from bench.imports.space import check_shape, space

TIMES = 500
SECONDS = 5
ENOUGH = 2**26
"""Bytes that reading a small file may take at most."""


class Late(BaseException):
    """Not an `Exception`: no reader may take it for damage of the file."""


@contextmanager
def in_time():
    """Fail where a file takes more seconds of the processor than any honest one."""

    def late(*_):
        raise Late

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.fixture(scope="module")
def prepared():
    return bench.data.prepare(bench.data.load("digits"), "meanstd")


def outcome(path, prepared, **options):
    """Return `set` or the error, and fail for anything else."""
    said = {"preprocessing": "meanstd", "formation": options.pop("formation", None)}
    if "pixels" in options:
        said["pixels"] = options.pop("pixels")
    try:
        with in_time():
            foreign = imports.read(path, **options)
            check_shape(foreign, prepared.info)
            choice = Choice(**said)
            check(assemble(foreign, prepared, space(foreign, prepared.info, choice)[1], None, choice))
    except UserError as error:
        message = str(error)
    else:
        return "set"
    assert "\n" not in message
    assert len(message) < 1000
    return message


# ---------------------------------------------------------------------------------------------- mutations


def mutate(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """Return the bytes changed in one of seven ways."""
    out, kind = bytearray(data), rng.randrange(7)
    place, length = rng.randrange(len(out)), min(rng.choice((1, 2, 4, 8, 40)), len(out))
    if kind == 0:  # a few bits, anywhere
        for _ in range(rng.randrange(1, 8)):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        return bytes(out[:place])
    elif kind == 2:  # a piece is gone, or there twice
        out[place : place + length] = out[place : place + length] * rng.choice((0, 2))
    elif kind == 3:  # the largest and the smallest numbers
        out[place : place + length] = bytes([rng.choice((0, 0x7F, 0x80, 0xFF))]) * length
    elif kind == 4:  # another digit of a shape, a type or a name
        digits = [i for i, byte in enumerate(out) if chr(byte) in "0123456789<>|ifub(,)"]
        for i in rng.sample(digits, min(3, len(digits))):
            out[i] = ord(rng.choice("0123456789<>|ifubO(,)-"))
    elif kind == 5:  # a piece of another file
        start = rng.randrange(len(other))
        out[place : place + length] = other[start : start + rng.choice((1, 8, 100))]
    else:  # near the beginning, where headers are
        for _ in range(rng.randrange(1, 4)):
            out[rng.randrange(min(len(out), 128))] = rng.randrange(256)
    return bytes(out)


def mutate_inside(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """Return an archive with one member mutated, mostly the one that says what the others are."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        names = old.namelist()
        told = [name for name in names if name.endswith(("data.pkl", ".npy"))]
        chosen = rng.choice(told if rng.random() < 0.8 else names)
        for name in names:
            content = old.read(name)
            content = mutate(content, rng, other) if name == chosen and content else content
            if not (name == chosen and rng.random() < 0.02):
                new.writestr(name, content)
    return stream.getvalue()


# ---------------------------------------------------------------------------------------------- every format


def originals(folder):
    """Write one small valid file of every format; return by name: the file to mutate, what to import, the options."""
    rng = torch.Generator().manual_seed(0)
    images, labels = torch.randn((10, 1, 8, 8), generator=rng), torch.arange(10)
    soft, raw = torch.randn((10, 10), generator=rng), (images.abs() * 90).clamp(0, 255).byte()
    homes = {}

    def home(name):
        homes[name] = folder / name
        homes[name].mkdir()
        return homes[name]

    found = {
        "res": official.res(home("res"), [(images, labels)] * 2),
        "legacy": official.res_legacy(home("legacy"), [(images, labels)]),
        "trustdd": official.trustdd(home("trustdd"), [(images, labels)], [images]),
        "apm": official.apm(home("apm"), images, soft),
        "pair": official.pair(home("pair"), images, labels, torch.tensor(0.02)),
        "idc": official.idc(home("idc"), images.sigmoid(), labels),
        "kip": official.kip(home("kip"), images, soft),
        "frepo": official.frepo_npz(home("frepo"), images, soft),
        "flax": official.frepo_flax(home("flax"), images, soft),
        "npy": official.npy(home("npy"), images.numpy(), labels.numpy()),
    }
    places = {name: (path, path, {}) for name, path in found.items()}
    places["idc"] = (*places["idc"][:2], {"formation": 2})
    places["labels"] = (found["pair"].with_name("labels_best.pt"), found["pair"], {})
    np.savez_compressed(home("npz") / "set.npz", images=official.nhwc(raw), labels=labels.numpy())
    places["npz"] = (folder / "npz" / "set.npz", folder / "npz" / "set.npz", {})
    torch.save({"images": images.double(), "labels": labels}, home("dict") / "set.pt", pickle_protocol=4)
    places["dict"] = (folder / "dict" / "set.pt", folder / "dict" / "set.pt", {})
    from safetensors.torch import save_file

    save_file({"images": images, "labels": labels}, home("safetensors") / "set.safetensors")
    places["safetensors"] = (folder / "safetensors" / "set.safetensors",) * 2 + ({},)
    sre2l = official.sre2l(home("sre2l"), raw[:2], labels[:2])
    stored = official.sre2l_labels(folder / "sre2l", [torch.eye(10)[:2] * 5], batch=2)
    places["sre2l"] = (stored / "epoch_0" / "batch_0.tar", sre2l, {"labels": stored})
    jpeg = official.sre2l(home("jpeg"), raw[:2], labels[:2]) / "new000" / "class000_id000.png"
    Image.open(jpeg).save(jpeg.with_suffix(".jpg"))
    jpeg.unlink()
    places["jpeg"] = (jpeg.with_suffix(".jpg"), folder / "jpeg" / "syn", {})
    places["png"] = (sre2l / "new001" / "class001_id000.png", sre2l, {})
    return places


NAMES = (
    "res", "legacy", "trustdd", "apm", "pair", "labels", "idc", "dict", "kip", "frepo", "flax", "npy", "npz",
    "safetensors", "sre2l", "jpeg", "png",
)  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    found = originals(tmp_path_factory.mktemp("fuzz"))
    assert set(found) == set(NAMES)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_mutated_files_give_an_error_or_a_set(places, prepared, name):
    mutated, path, options = places[name]
    original = mutated.read_bytes()
    assert outcome(path, prepared, **dict(options)) == "set"
    rng, others = random.Random(name), [place[0].read_bytes() for place in places.values()]
    results = []
    for number in range(TIMES):
        other = rng.choice(others)
        inside = original.startswith(b"PK") and number % 3
        mutated.write_bytes((mutate_inside if inside else mutate)(original, rng, other))
        results.append(outcome(path, prepared, **dict(options)))
    mutated.write_bytes(original)
    assert len([result for result in results if result != "set"]) > TIMES // 10  # most mutations do damage


# ---------------------------------------------------------------------------------------------- hostile files


def test_no_bomb_of_any_kind_goes_off(tmp_path):
    files, target = official.bombs(tmp_path)
    pickle.loads((tmp_path / "plain.pkl").read_bytes())  # these do work
    assert target.is_file()
    target.unlink()
    for path in files:
        with pytest.raises(UserError) as caught:
            imports.read(path)
        assert not target.exists(), path
        if not path.name.startswith("checkpoint"):
            assert "can run any code" in str(caught.value), path
            assert "if you trust the file" in str(caught.value)


def test_what_was_wanted_and_the_remedy_are_named(tmp_path):
    files, _ = official.bombs(tmp_path)
    for path in files[:2]:
        with pytest.raises(UserError, match=r"'posix\.system'|'nt\.system'"):
            imports.read(path)
    with pytest.raises(UserError, match=r"torch\.load\('zip.pt', weights_only=False\).*torch\.save\(dict\(images="):
        imports.read(tmp_path / "zip.pt")
    with pytest.raises(UserError, match=r"numpy\.load\('objects.npz', allow_pickle=True\)"):
        imports.read(tmp_path / "objects.npz")


def test_the_remedy_works(tmp_path):
    """The code in the error, run by whoever trusts the file, makes a file that is read."""
    images, labels = torch.randn(10, 1, 8, 8), torch.arange(10)
    torch.save({"data": [[images, labels]], "args": torch.nn.ReLU()}, tmp_path / "own.pt")
    with pytest.raises(UserError, match=r"torch\.nn\.modules\.activation\.ReLU") as caught:
        imports.read(tmp_path / "own.pt")
    code = str(caught.value).split("where it was made: ")[1].removesuffix(")")
    code = code.replace("images, labels = ...", "images, labels = x['data'][0]")
    code = code.replace("'own", f"'{tmp_path}/own")
    exec(code, {"torch": torch})
    assert imports.load(tmp_path / "own-safe.pt", dataset="digits", preprocessing="meanstd").images.equal(images)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_bombs_do_not_go_off_either(tmp_path, prepared, seed):
    files, target = official.bombs(tmp_path)
    rng, contents = random.Random(seed), [path.read_bytes() for path in files]
    for number in range(TIMES // 4):
        index = number % len(files)
        change = mutate_inside if contents[index].startswith(b"PK") else mutate
        files[index].write_bytes(change(contents[index], rng, rng.choice(contents)))
        outcome(files[index], prepared)
        files[index].write_bytes(contents[index])
    assert not target.exists()


def torch_zip(path, program: bytes, **members: bytes):
    """Write an archive of torch with a pickle of one's own."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", b"\x80\x02" + program)
        for name, data in members.items():
            file.writestr(f"x/data/{name.removeprefix('s')}", data)


def tensor_program(size=b"K\nK\x01K\x08K\x08t", stride=b"K@K@K\x08K\x01t", offset=b"K\x00", numel=b"M\x80\x02"):
    """Return the pickle of one tensor [10, 1, 8, 8] of 640 stored floats, or of what the arguments make of it."""
    stored = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + numel + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + stored + offset + b"(" + size + b"(" + stride + b"\x89NtR."


HUGE = b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f"
LONG = b"\x8b" + struct.pack("<i", 2**20) + b"\x7f" * 2**20
NESTED = b")" + b"q\x00h\x00\x86" * 60  # a tuple of two of the tuple before, sixty times
PROGRAMS = {
    "more values than are stored": tensor_program(size=b"M\xff\xffK\x01K\x08K\x08t"),
    "a shape of absurd size": tensor_program(size=HUGE * 4 + b"t"),
    "a number of a million digits as a side": tensor_program(size=LONG * 4 + b"t"),
    "a step of absurd size": tensor_program(stride=HUGE * 4 + b"t"),
    "a negative step": tensor_program(stride=b"J\xff\xff\xff\xff" * 4 + b"t"),
    "a broadcast one of absurd size": tensor_program(
        size=b"J\x00\x00\x00\x10K\x01K\x08K\x08t", stride=b"K\x00" * 4 + b"t"
    ),
    "more stored values than there are": tensor_program(numel=b"J\xff\xff\xff\x7f"),
    "an offset beyond the end": tensor_program(offset=HUGE),
    "a key that takes forever to hash": b"}" + NESTED + b"K\x01s.",
    "a set of what takes forever to hash": b"\x8f(" + NESTED + b"\x90.",
    "a shape that takes forever to print": tensor_program(size=NESTED + b"t"),
    "a byte array of absurd size": b"\x96" + struct.pack("<Q", 2**40) + b".",
    "a text of absurd size": b"\x8d" + struct.pack("<Q", 2**40) + b".",
    "a memo of absurd size": b"Nr\xff\xff\xff\xff.",
    "a class called": b"cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
    "a storage type called": b"ctorch\nFloatStorage\n)R.",
    "an attribute of a function": b"ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__)s\x86b.",
    "an attribute by the old way": b"(cos\nsystem\nX\x01\x00\x00\x001o.",
    "nothing at all": b"",
}


@pytest.mark.parametrize("what", PROGRAMS)
def test_pickles_made_to_harm(tmp_path, what):
    defaults = torch_file._tensor.__defaults__
    torch_zip(tmp_path / "images_best.pt", PROGRAMS[what], s0=bytes(2560))
    torch.save(torch.arange(10), tmp_path / "labels_best.pt")
    tracemalloc.start()
    try:
        with in_time(), pytest.raises(UserError) as caught:
            imports.read(tmp_path / "images_best.pt")
        assert tracemalloc.get_traced_memory()[1] < ENOUGH
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 1000
    assert torch_file._tensor.__defaults__ == defaults


def test_the_harmless_one_is_read(tmp_path):
    torch_zip(tmp_path / "images_best.pt", tensor_program(), s0=np.arange(640, dtype="<f4").tobytes())
    torch.save(torch.arange(10), tmp_path / "labels_best.pt")
    assert imports.read(tmp_path / "images_best.pt").images.equal(torch.arange(640.0).view(10, 1, 8, 8))


def header(shape, descr="<f4"):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def bombs_of_size(folder):
    """Small files that say they hold much."""
    (folder / "shape.npy").write_bytes(header((2**20, 2**20, 2**10)) + bytes(64))
    (folder / "sparse.npy").write_bytes(header((2**16, 3, 64, 64)) + bytes(64))
    (folder / "negative.npy").write_bytes(header((-1, 8, 8)) + bytes(64))
    (folder / "text.npy").write_bytes(header((10,), "<U2000000000") + bytes(64))
    with zipfile.ZipFile(folder / "zeros.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("images.npy", header((2**15, 64, 64, 1), "|u1") + bytes(2**27))
        file.writestr("labels.npy", header((2**15,), "|u1") + bytes(2**15))
    with zipfile.ZipFile(folder / "lies.npz", "w") as file:
        file.writestr("images.npy", header((2**20, 32, 32, 3)) + bytes(64))
        file.writestr("labels.npy", header((2**20,), "|u1") + bytes(64))
    arrays = b"\xdd\x00\x00\x0f\xff" * 1000
    (folder / "lists").write_bytes(b"\x81\xa6params" + arrays)
    (folder / "deep").write_bytes(b"\x81\xa1x" * 100_000)
    (folder / "length").write_bytes(b"\x81\xa6params\xc6\xff\xff\xff\xff")
    packed = msgpack.packb(((2**20, 2**20, 2**10, 3), "float32", bytes(64)), use_bin_type=True)
    state = {"params": {"x_proto": msgpack.ExtType(1, packed), "y_proto": msgpack.ExtType(1, packed)}}
    (folder / "array").write_bytes(msgpack.packb(state))
    (folder / "header.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{" + bytes(64))
    return sorted(path for path in folder.iterdir())


def test_small_files_that_say_they_are_large_take_no_memory(tmp_path):
    for path in bombs_of_size(tmp_path):
        tracemalloc.start()
        try:
            with in_time(), pytest.raises(UserError):
                imports.read(path)
            assert tracemalloc.get_traced_memory()[1] < ENOUGH, path.name
        finally:
            tracemalloc.stop()


def test_a_picture_of_absurd_size(tmp_path):
    path = tmp_path / "set" / "a" / "0.png"
    path.parent.mkdir(parents=True)
    Image.new("1", (20_000, 20_000)).save(path)
    with in_time(), pytest.raises(UserError, match=r"too large|exceeds limit|decompression bomb"):
        imports.read(tmp_path / "set")
