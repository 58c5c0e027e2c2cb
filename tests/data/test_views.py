"""Views: the right images, in names that are checked, with fingerprints known before anything is read."""

import re

import numpy as np
import pytest
import torch

from bench import data
from bench.data import views
from bench.errors import UserError


def rows(split):
    """Return the images of a split as a multiset of bytes."""
    return sorted(image.numpy().tobytes() for image in split.images)


def test_rare_changes_a_share_of_every_class_and_labels_the_groups():
    base, view = data.load("digits"), data.load("digits@rare(share=0.1, test=0.5)")
    for half, share in (("train", 0.1), ("test", 0.5)):
        plain, seen = getattr(base, half), getattr(view, half)
        rare = seen.groups == 1
        for label in range(10):
            of_class = plain.labels == label
            assert int(rare[of_class].sum()) == round(share * int(of_class.sum()))
        assert torch.equal(seen.images[rare], 255 - plain.images[rare])
        assert torch.equal(seen.images[~rare], plain.images[~rare])
        assert torch.equal(seen.labels, plain.labels)
    assert base.train.groups is None  # the base, which others share, is not written into
    assert view.info.name == "digits@rare(share=0.1, test=0.5)"
    assert not view.info.complete
    assert view.content == data.fingerprint(view.info.name) != base.content


@pytest.mark.parametrize(("change", "numpy"), [("rotate", lambda x: np.rot90(x)), ("mirror", lambda x: x[:, ::-1])])
def test_other_changes_are_those_of_numpy(change, numpy):
    base, view = data.load("digits"), data.load(f"digits@rare(change={change})")
    index = int((view.train.groups == 1).nonzero()[0])
    assert np.array_equal(view.train.images[index, 0].numpy(), numpy(base.train.images[index, 0].numpy()))


def test_chunks_are_disjoint_and_cover_the_training_images():
    base = data.load("digits")
    chunks = [data.load(f"digits@chunk(size=721, index={k})") for k in range(2)]
    assert sorted(rows(chunks[0].train) + rows(chunks[1].train)) == rows(base.train)
    assert all(rows(chunk.test) == rows(base.test) for chunk in chunks)
    with pytest.raises(UserError, match="chunk 2 of 721 images is beyond the 1442"):
        data.info("digits@chunk(size=721, index=2)")


@pytest.mark.parametrize(
    ("seed", "prefix"),
    [
        (0, [26, 86, 2, 55, 75, 93, 16, 73]),
        (1, [80, 84, 33, 81]),
        (2, [83, 30, 56, 24]),
        (3, [93, 67, 6, 64]),
        (4, [20, 10, 96, 16]),
    ],
)
def test_orders_of_classes_are_the_published_ones(seed, prefix):
    steps = [views.Classes(steps=100, step=step, order=seed).chosen(100)[0] for step in range(len(prefix))]
    assert steps == prefix
    first = views.Classes(steps=5, step=0, order=seed).chosen(100)
    assert set(prefix) <= set(first)
    assert len(first) == 20


def test_the_steps_deal_out_all_classes_and_keep_labels_and_test_set():
    base = data.load("digits")
    parts = [data.prepare(data.load(f"digits@classes(steps=5, step={step}, order=3)")) for step in range(5)]
    assert sorted(c for part in parts for c in part.train.present) == list(range(10))
    assert sum(part.train.size for part in parts) == len(base.train.labels)
    for part in parts:
        assert part.train.labels.unique().tolist() == list(part.train.present)
        assert part.info.classes == 10
        assert part.test.size == len(base.test.labels)
        batch = part.train.sample_classes(3, torch.Generator().manual_seed(0))
        assert batch.counts == (3, 3)
        assert batch.labels.tolist() == [c for c in part.train.present for _ in range(3)]
    with pytest.raises(UserError, match="step 0 of 3 over 10 classes"):
        data.info("digits@classes(steps=3)")


def test_every_audited_image_is_in_half_of_the_runs():
    base = data.load("digits")
    half = views.Half(runs=4, audit=60)
    index, labels, member = half.audited(base)
    assert member.sum(0).tolist() == [2] * 60
    assert (labels != base.train.labels[index]).all()
    kept = data.load("digits@half(runs=4, audit=60, run=1)")
    assert len(kept.train.labels) == 1442 - 60 + int(member[1].sum())
    marked = base.train.labels.clone()
    marked[index] = labels
    wanted = torch.ones(1442, dtype=torch.bool)
    wanted[index] = member[1]
    assert torch.equal(kept.train.images, base.train.images[wanted])
    assert torch.equal(kept.train.labels, marked[wanted])
    alone = data.load("digits@half(runs=4, audit=60, run=1, alone=true, mislabelled=false)")
    assert torch.equal(alone.train.images, base.train.images[index[member[1]]])
    assert torch.equal(alone.train.labels, base.train.labels[index[member[1]]])


def test_views_can_be_chained():
    chained = "digits@rare(share=0.2)@classes(steps=5, step=1)"
    view = data.load(chained)
    assert view.info.name == chained
    assert view.train.groups is not None
    assert len(view.train.groups) == len(view.train.labels)
    assert data.fingerprint(chained) != data.fingerprint("digits@classes(steps=5, step=1)")


def test_equal_views_have_equal_fingerprints_however_they_are_written():
    names = ["digits@rare()", "digits@rare(share=0.05)", "digits@rare( seed = 0 , share=0.05)"]
    assert len({data.fingerprint(name) for name in names}) == 1
    assert data.fingerprint("digits@rare(seed=1)") != data.fingerprint(names[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits@rar()", "unknown view 'rar'.*rare"),
        ("digits@rare(shar=1)", "unknown argument 'shar'.*share"),
        ("digits@rare(share=2)", "share in .*less than or equal to 1"),
        ("digits@rare(share)", "is not an argument"),
        ("digit@rare()", "unknown dataset 'digit'"),
        ("digits@half(runs=3)", "runs in .*multiple of 2"),
        ("digits@half(run=9)", "run 9 of 8"),
    ],
)
def test_mistakes_are_named(name, message):
    with pytest.raises(UserError) as caught:
        data.info(name)
    assert re.search(message, f"{caught.value} {caught.value.hint}")


def test_a_view_of_data_that_is_not_there_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path))
    with pytest.raises(UserError, match="fashion_mnist") as caught:
        data.require("fashion_mnist@rare()")
    assert "ddbench data get fashion_mnist" in str(caught.value.hint)
