"""The file gives back exactly the bytes it was given, and nothing but a valid set ever comes out of it."""

import json
import random
import struct
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as to_bytes
from torch.utils.data import DataLoader

from bench import distilled as module
from bench.api import DatasetInfo, DistilledSet, Header, Method, NetSpec, Params, TaskSpec, param
from bench.distilled import FIELDS, as_dataset, budget, check, decode, load, make_header, make_set, save, summary
from bench.errors import Diverged, UserError
from bench.registry import DECODERS


def header(**fields):
    base = {
        "dataset": "synthetic",
        "classes": 3,
        "shape": (1, 2, 2),
        "preprocessing": "meanstd",
        "ipc": 2,
        "seed": 0,
        "method": "random",
        "method_version": 1,
        "params": {},
        "network": {"arch": "convnet"},
        "augment": "none",
    }
    return Header(**(base | fields))


def plain(**fields):
    """A small valid set: six images of three classes."""
    images = torch.arange(24.0).reshape(6, 1, 2, 2)
    base = {"header": header(), "images": images, "labels": torch.tensor([0, 0, 1, 1, 2, 2])}
    return DistilledSet(**(base | fields))


def rich():
    """A valid set with every field in use."""
    return plain(
        header=header(label_kind="logits", learned_rate=0.1, outlier_weight=0.5, native_recipe={"base": "review"}),
        labels=torch.randn(6, 3),
        indices=torch.arange(6),
        steps=torch.tensor([[0, 1, 2], [3, 4, 5]]),
        rates=torch.tensor([0.1, 0.2]),
        outliers=torch.randn(4, 1, 2, 2),
        extra={"preprocessing/matrix": torch.eye(4, dtype=torch.float64), "latents": torch.randn(6, 5).half()},
    )


def bits(tensor):
    return None if tensor is None else (tensor.dtype, tuple(tensor.shape), tensor.contiguous().numpy().tobytes())


def assert_same(first, second):
    assert first.header == second.header
    assert {name: bits(getattr(first, name)) for name in FIELDS} == {n: bits(getattr(second, n)) for n in FIELDS}
    assert {k: bits(v) for k, v in first.extra.items()} == {k: bits(v) for k, v in second.extra.items()}


# ------------------------------------------------------------------------------------ round trip

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def sets(draw):
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shape = tuple(draw(st.integers(1, 5)) for _ in range(3))
    classes, size = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    kind = draw(st.sampled_from(["hard", "probabilities", "logits", "centred"]))
    labels = torch.randint(classes, (size,), generator=rng)
    if kind != "hard":
        labels = torch.randn(size, classes, generator=rng)
        labels = labels.softmax(1) if kind == "probabilities" else labels
    maybe = st.booleans()

    def images(count):  # every finite bit pattern: negative zero, denormals, huge values
        raw = torch.randint(-(2**31), 2**31, (count, *shape), generator=rng, dtype=torch.int64).to(torch.int32)
        return torch.nan_to_num(raw.view(torch.float32), nan=-0.0)

    count = draw(st.integers(0, 3))
    steps = torch.randint(size, (count, draw(st.integers(0, 3))), generator=rng) if draw(maybe) else None
    return DistilledSet(
        header(
            classes=classes,
            shape=shape,
            label_kind=kind,
            seed=draw(st.integers(0, 2**70)),
            ipc=draw(st.none() | st.integers(1, 100)),
            class_names=tuple(draw(st.text(max_size=4)) for _ in range(classes)) if draw(maybe) else (),
            learned_rate=draw(st.none() | st.floats(allow_nan=False, allow_infinity=False)),
            params=draw(st.dictionaries(st.text(max_size=5), json_values, max_size=3)),
            provenance=draw(st.dictionaries(st.text(max_size=5), json_values, max_size=3)),
        ),
        images(size).to(memory_format=torch.channels_last) if draw(maybe) else images(size),
        labels,
        indices=torch.randint(2**40, (size,), generator=rng) if draw(maybe) else None,
        steps=steps,
        rates=torch.randn(count, generator=rng) if steps is not None and draw(maybe) else None,
        outliers=images(draw(st.integers(0, 2))) if draw(maybe) else None,
        extra={"a/b": torch.randn(0, 3, generator=rng), "scalar": torch.tensor(1.5, dtype=torch.float64)},
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sets())
def test_every_bit_comes_back(tmp_path, distilled):
    file = tmp_path / "set.safetensors"
    save(file, distilled)
    assert_same(load(file), distilled)


def test_every_field_comes_back(tmp_path):
    distilled = rich()
    save(tmp_path / "set.safetensors", distilled)
    assert_same(load(tmp_path / "set.safetensors"), distilled)


def test_equal_sets_give_equal_bytes_whatever_the_order_of_the_parameters(tmp_path):
    save(tmp_path / "a", plain(header=header(params={"x": 1, "y": 2})))
    save(tmp_path / "b", plain(header=header(params={"y": 2, "x": 1})))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tensors_that_share_memory_or_need_a_gradient_are_written(tmp_path):
    pool = torch.randn(12, 1, 2, 2, requires_grad=True)
    distilled = plain(images=pool[:6], outliers=pool[3:9])
    save(tmp_path / "set", distilled)
    assert torch.equal(load(tmp_path / "set").outliers, pool[3:9].detach())


def test_a_selection_without_images(tmp_path):
    distilled = plain(images=None, indices=torch.arange(6))
    save(tmp_path / "set", distilled)
    assert load(tmp_path / "set").images is None


def test_the_file_holds_one_json_string_and_no_pickle(tmp_path):
    save(tmp_path / "set", rich())
    data = (tmp_path / "set").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    assert list(metadata) == ["ddbench"]
    assert json.loads(metadata["ddbench"])["method"] == "random"


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    save(tmp_path / "set", plain())
    before = (tmp_path / "set").read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(UserError, match=r"set: cannot be written: No space left"):
            save(tmp_path / "set", rich())
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert (tmp_path / "set").read_bytes() == before


def test_the_folder_is_made_unless_a_file_is_in_its_place(tmp_path):
    save(tmp_path / "a" / "b" / "set", plain())
    assert_same(load(tmp_path / "a" / "b" / "set"), plain())
    with pytest.raises(UserError, match="cannot be written"):
        save(tmp_path / "a" / "b" / "set" / "set", plain())


def test_a_header_that_is_no_json_is_refused(tmp_path):
    with pytest.raises(UserError, match="JSON"):
        save(tmp_path / "set", plain(header=header(params={"x": float("nan")})))


# ------------------------------------------------------------------------------------ rules

nan = torch.full((6, 1, 2, 2), float("nan"))
BROKEN = {
    "images have shape": {"images": torch.zeros(5, 1, 2, 2)},
    "images have shape (6, 2, 2)": {"images": torch.zeros(6, 2, 2)},
    "images are torch.float64": {"images": torch.zeros(6, 1, 2, 2, dtype=torch.float64)},
    "images are not finite": {"images": nan},
    "neither images nor indices": {"images": None},
    "hard labels must be 0 to 2, found 0 to 3": {"labels": torch.tensor([0, 1, 2, 3, 0, 0])},
    "found -1 to 0": {"labels": torch.tensor([0, -1, 0, 0, 0, 0])},
    "labels are torch.float32": {"labels": torch.zeros(6)},
    "hard labels have shape": {"labels": torch.zeros(6, 1, dtype=torch.int64)},
    "no labels": {"labels": torch.zeros(0, dtype=torch.int64), "images": torch.zeros(0, 1, 2, 2)},
    "labels are torch.int64": {"header": header(label_kind="logits")},
    "probabilities labels have shape": {"header": header(label_kind="probabilities"), "labels": torch.zeros(6, 2)},
    "sum to 1": {"header": header(label_kind="probabilities"), "labels": torch.full((6, 3), 0.3)},
    "negative": {"header": header(label_kind="probabilities"), "labels": torch.tensor([[2.0, -1.0, 0.0]] * 6)},
    "indices must be 6": {"indices": torch.arange(5)},
    "indices must be 6 numbers from 0": {"indices": torch.arange(6) - 1},
    "indices are torch.int32": {"indices": torch.arange(6, dtype=torch.int32)},
    "image numbers 0 to 5": {"steps": torch.tensor([[0, 6]])},
    "steps must be a table": {"steps": torch.tensor([0, 1])},
    "rates must be": {"steps": torch.tensor([[0, 1]]), "rates": torch.ones(2)},
    "rates must be one number": {"rates": torch.ones(2)},
    "outliers have shape": {"outliers": torch.ones(2, 1, 2, 3)},
    "outliers are not finite": {"outliers": nan},
    "matrix are not finite": {"extra": {"matrix": nan}},
    "2 class names for 3 classes": {"header": header(class_names=("a", "b"))},
    "decoder has no name": {"header": header(decoder={})},
    "learned_rate is nan": {"header": header(learned_rate=float("nan"))},
    "must be positive": {"header": header(classes=0)},
}


@pytest.mark.parametrize("problem", BROKEN)
def test_an_inconsistent_set_is_refused(problem, tmp_path):
    distilled = plain(**BROKEN[problem])
    with pytest.raises(UserError) as caught:
        check(distilled, where="here")
    assert problem in str(caught.value)
    with pytest.raises(UserError, match="set"):
        save(tmp_path / "set", distilled)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("problem", [problem for problem in BROKEN if problem != "learned_rate is nan"])
def test_an_inconsistent_file_is_refused(problem, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "check", lambda distilled, where: distilled)
        save(tmp_path / "set", plain(**BROKEN[problem]))
    with pytest.raises(UserError, match="set: not a valid distilled set") as caught:
        load(tmp_path / "set")
    assert problem in str(caught.value)


def test_rules_do_not_refuse_what_is_right():
    check(rich())
    check(plain(header=header(label_kind="probabilities"), labels=torch.randn(6, 3).mul(30).softmax(1)))
    check(plain(header=header(decoder={"name": "multi_formation"}), images=torch.zeros(2, 1, 2, 2)))
    check(plain(outliers=torch.zeros(0, 1, 2, 2), steps=torch.zeros(0, 3, dtype=torch.int64), rates=torch.zeros(0)))


# ------------------------------------------------------------------------------------ damage


def refused(file):
    """Return the message for a file that must give a one-line `UserError` with its name."""
    with pytest.raises(UserError) as caught:
        load(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    return message


def test_a_file_that_is_not_there(tmp_path):
    assert "No such file" in refused(tmp_path / "none.safetensors")
    assert "directory" in refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q\x00.", b"PK\x03\x04" + bytes(100), b"{}", b"\xff" * 64])
def test_a_foreign_file(tmp_path, content):
    (tmp_path / "set").write_bytes(content)
    assert "not a distilled set" in refused(tmp_path / "set")


def test_tensors_of_somebody_else(tmp_path):
    (tmp_path / "set").write_bytes(to_bytes({"images": torch.zeros(1)}))
    assert "not a distilled set of ddbench" in refused(tmp_path / "set")


def with_header(text, **tensors):
    named = {"images": torch.zeros(6, 1, 2, 2), "labels": torch.zeros(6, dtype=torch.int64)} | tensors
    return to_bytes(named, metadata={"ddbench": text})


def changed(**fields):
    return json.dumps(header().model_dump(mode="json") | fields)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (changed(format=2), "format 2 is newer than this ddbench, which reads 1"),
        (changed(format=0), "unknown format 0"),
        (changed(format=True), "unknown format True"),
        (changed(format=None), "unknown format None"),
        (changed(shape=[1, 2]), "header field shape"),
        (changed(label_kind="soft"), "header field label_kind"),
        (changed(surprise=1), "header field surprise"),
        (changed(learned_rate=float("inf")), "learned_rate is inf"),
        ("[1]", "not a JSON object"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"format": ' + "9" * 5000 + "}", "not valid JSON"),
    ],
)
def test_a_header_that_does_not_fit(tmp_path, text, expected):
    (tmp_path / "set").write_bytes(with_header(text))
    assert expected in refused(tmp_path / "set")


def test_unknown_and_missing_tensors(tmp_path):
    (tmp_path / "set").write_bytes(with_header(changed(), weights=torch.zeros(1)))
    assert "unknown tensor 'weights'" in refused(tmp_path / "set")
    (tmp_path / "set").write_bytes(to_bytes({"images": torch.zeros(1)}, metadata={"ddbench": changed()}))
    assert "no labels" in refused(tmp_path / "set")


def test_a_truncated_file(tmp_path):
    save(tmp_path / "set", rich())
    data = (tmp_path / "set").read_bytes()
    for length in [*range(16), *range(16, len(data), 37), len(data) - 1]:
        (tmp_path / "cut").write_bytes(data[:length])
        refused(tmp_path / "cut")
    (tmp_path / "cut").write_bytes(data + b"\0")
    refused(tmp_path / "cut")


def test_mutated_bytes_give_a_valid_set_or_one_line(tmp_path):
    save(tmp_path / "set", rich())
    data = (tmp_path / "set").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    dice, refusals = random.Random(0), 0
    for trial in range(300):
        mutant = bytearray(data)
        # two thirds of the damage hits the header, where the meaning is
        limit = 8 + length if trial % 3 else len(data)
        for _ in range(dice.randint(1, 4)):
            place = dice.randrange(min(limit, len(mutant)))
            match dice.randrange(4):
                case 0:
                    mutant[place] = dice.randrange(256)
                case 1:
                    mutant[place] ^= 1 << dice.randrange(8)
                case 2:
                    del mutant[place : place + dice.randint(1, 8)]
                case 3:
                    mutant[place:place] = dice.choice([b"0", b"9", b"}", b'"', b"-1", b"null", b"\0", b"\xff"])
        (tmp_path / "mutant").write_bytes(mutant)
        try:
            check(load(tmp_path / "mutant"))
        except UserError:
            refusals += 1
            refused(tmp_path / "mutant")
    assert refusals > 200


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(Header.model_fields)), value=json_values, drop=st.booleans())
def test_a_changed_header_gives_a_valid_set_or_one_line(tmp_path, name, value, drop):
    fields = header(label_kind="logits").model_dump(mode="json") | {name: value}
    if drop:
        del fields[name]
    (tmp_path / "set").write_bytes(with_header(json.dumps(fields), labels=torch.zeros(6, 3)))
    try:
        check(load(tmp_path / "set"))
    except UserError:
        refused(tmp_path / "set")


# ------------------------------------------------------------------------------------ use


def task(shape=(1, 8, 8), ipc=2, seed=0, preprocessing="meanstd", tensors=None):
    """The parts of a task that a header is made of, with sixty training images of three classes."""
    info = DatasetInfo(
        name="synthetic",
        title="",
        source="",
        licence="",
        classes=3,
        shape=shape,
        train_size=60,
        test_size=60,
        mean=(0.0,),
        std=(1.0,),
        constants_source="",
        flip=False,
        content=None,
        family="synthetic",
    )
    spec = TaskSpec(dataset=info, ipc=ipc, network=NetSpec(), preprocessing=preprocessing, seed=seed)
    images = torch.randn(60, *shape)
    train = SimpleNamespace(size=60, images=lambda index: images[index])
    data = SimpleNamespace(train=train, class_names=("a", "b", "c"), tensors=lambda: tensors or {})
    return SimpleNamespace(spec=spec, data=data)


class Fixed(Method):
    """A method that does nothing, for the header."""

    class Params(Params):
        strength: float = param(0.5, "of nothing")

    version = 7
    title, citation = "fixed", "nobody"
    steps = 0

    @classmethod
    def native_recipe(cls, params, spec):
        return {"base": "review", "epochs": spec.ipc or 1}

    def start(self, task):
        pass

    def export(self):
        raise AssertionError("never started here")


def test_the_header_is_what_task_and_method_say():
    asked = task(seed=5, preprocessing="zca-kip")
    made = make_header(asked, Fixed(Fixed.Params()), label_kind="centred")
    assert (made.dataset, made.classes, made.shape, made.ipc, made.seed) == ("synthetic", 3, (1, 8, 8), 2, 5)
    assert (made.method, made.method_version, made.params) == (f"{__name__}:Fixed", 7, {"strength": 0.5})
    assert (made.preprocessing, made.label_kind) == ("zca-kip", "centred")
    assert made.class_names == ("a", "b", "c")
    assert made.native_recipe == {"base": "review", "epochs": 2}
    assert made.network == asked.spec.network.model_dump()
    assert made.floats == {"stored": 384, "decoded": 384, "raw": 384}


def test_a_registered_method_is_called_by_its_name():
    from methods.random import Random

    assert make_header(task(), Random(Random.Params())).method == "random"


def test_whole_has_the_budget_of_all_training_images():
    assert make_header(task(ipc=None), Fixed(Fixed.Params())).floats["raw"] == 60 * 64


def test_make_set_carries_the_transform_and_the_budget():
    asked = task(shape=(1, 2, 2), tensors={"preprocessing/matrix": torch.eye(4)})
    distilled = make_set(
        asked,
        Fixed(Fixed.Params()),
        images=torch.zeros(6, 1, 2, 2, requires_grad=True, dtype=torch.float64),
        labels=torch.zeros(6, 3),
        header={"label_kind": "logits", "learned_rate": 0.1},
    )
    assert list(distilled.extra) == ["preprocessing/matrix"]
    assert not distilled.images.requires_grad
    assert distilled.images.dtype == torch.float32
    assert distilled.header.floats == {"stored": 24 + 18 + 1, "decoded": 24, "raw": 24}
    with pytest.raises(UserError, match="images have shape"):
        make_set(asked, Fixed(Fixed.Params()), images=torch.zeros(1), labels=torch.zeros(6).long(), header={})


@pytest.mark.parametrize("images", [torch.zeros(6, 1, 2, 2), torch.full((6, 1, 2, 2), float("inf"))])
def test_a_result_that_is_no_number_has_diverged(images):
    rate = 0.1 if images[0, 0, 0, 0] else float("nan")
    with pytest.raises(Diverged, match=r"images are not finite|learned_rate is nan"):
        make_set(
            task(shape=(1, 2, 2)),
            Fixed(Fixed.Params()),
            images=images,
            labels=torch.zeros(6).long(),
            header={"learned_rate": rate},
        )


def test_budget_counts_what_must_be_kept():
    assert budget(plain()) == {"stored": 24, "decoded": 24, "raw": 24}
    assert budget(plain(images=None, indices=torch.arange(6))) == {"stored": 24, "decoded": 24, "raw": 24}
    # images 24, logits 18, rates 2, outliers 16, learned rate 1, latents 30; the whitening matrix is not counted
    assert budget(rich()) == {"stored": 24 + 18 + 2 + 16 + 1 + 30, "decoded": 24 + 16, "raw": 24}
    whole = plain(header=header(ipc=None), images=None, indices=torch.arange(6))
    assert budget(whole)["raw"] == 24


def test_decode_returns_pixels_or_gathers_them():
    prepared = task(shape=(1, 2, 2)).data
    assert torch.equal(decode(plain()), plain().images)
    selection = plain(images=None, indices=torch.tensor([5, 3, 1, 0, 2, 4]))
    assert torch.equal(decode(selection, prepared), prepared.train.images(selection.indices))
    with pytest.raises(UserError, match="give the data"):
        decode(selection)
    with pytest.raises(UserError, match="beyond the 60 training images"):
        decode(plain(images=None, indices=torch.arange(6) + 55), prepared)


def double(distilled, prepared=None):
    return torch.cat([distilled.images, -distilled.images])


def test_decode_finds_registered_decoders_only(monkeypatch):
    distilled = plain(header=header(decoder={"name": "double"}), images=torch.ones(3, 1, 2, 2))
    with pytest.raises(UserError, match="unknown decoder 'double'"):
        decode(distilled)
    literal = plain(header=header(decoder={"name": f"{__name__}:double"}), images=torch.ones(3, 1, 2, 2))
    with pytest.raises(UserError, match="unknown decoder"):  # a file must not choose what is imported
        decode(literal)
    monkeypatch.setitem(DECODERS.targets, "double", f"{__name__}:double")
    assert decode(distilled).sum() == 0
    with pytest.raises(UserError, match="made images of shape"):
        decode(plain(header=header(decoder={"name": "double"})))


def test_as_dataset_feeds_a_loader():
    ((images, labels),) = DataLoader(as_dataset(plain()), batch_size=6)
    assert torch.equal(images, plain().images)
    assert torch.equal(labels, plain().labels)


def test_summary_is_json_and_true():
    facts = json.loads(json.dumps(summary(plain())))
    assert facts["value_range"] == [0, 23]
    assert facts["images_per_class"] == [2, 2]
    assert facts["tensors"] == {"images": [6, 1, 2, 2], "labels": [6]}
    assert facts["labels"] == "6 hard"
    assert facts["floats"]["stored"] == 24
    assert summary(rich())["labels"] == "6 logits"
    assert "value_range" not in summary(plain(images=None, indices=torch.arange(6)))
