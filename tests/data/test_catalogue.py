import re

import numpy as np
import pytest

import bench.data
from bench.data import imagenet, lookup
from bench.data.catalogue import Entry
from bench.errors import MissingData, UserError

WITHOUT_HASH = {
    *("fashion_mnist", "svhn", "cifar100", "tiny_imagenet", "cub200", "imagenette2", "imagewoof2", "300k"),
    *imagenet.SUBSETS,
}


@pytest.mark.parametrize("name", bench.data.names())
def test_every_declared_fact_is_there(name):
    info = bench.data.info(name)
    assert info.name == name
    for fact in ("title", "source", "licence", "constants_source", "family"):
        assert getattr(info, fact).strip(), fact
    assert min(info.classes, *info.shape, info.train_size, info.test_size) > 0
    assert len(info.mean) == len(info.std) == info.shape[0]
    assert all(0 < value < 1 for value in (*info.mean, *info.std))
    assert info.complete == (info.family == name)
    assert info.family in bench.data.names()
    if name in WITHOUT_HASH:
        assert info.content is None
    else:
        assert re.fullmatch(r"[0-9a-f]{64}", info.content)
    entry = lookup.entry_of(name)
    assert entry.make or entry.download or entry.remedy
    for target in filter(None, (entry.make, entry.home, entry.download, *(layout.read for layout in entry.layouts))):
        module, _, function = target.partition(":")
        assert callable(getattr(__import__(module, fromlist=[function]), function)), target


def test_flip_follows_dsa():
    """Siamese augmentation mirrors colour images and clothes, and no digits (Zhao, Bilen, ICML 2021)."""
    unmirrored = {name for name in bench.data.names() if not bench.data.info(name).flip}
    assert unmirrored == {"digits", "debug", "mnist", "svhn"}


@pytest.mark.parametrize("name", imagenet.SUBSETS)
def test_imagenet_subsets_are_ten_classes_in_consistent_order(name):
    subset = imagenet.SUBSETS[name]
    assert len(set(subset.ids)) == len(set(subset.wnids)) == len(set(subset.class_names)) == 10
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in subset.wnids)
    by_id = [wnid for _, wnid in sorted(zip(subset.ids, subset.wnids, strict=True))]
    assert by_id == sorted(subset.wnids)  # ids count the folders by name


def test_imagenet_ids_and_names_agree_with_torchvision():
    from bench import tv

    tv.torchvision()
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    for subset in imagenet.SUBSETS.values():
        for number, name in zip(subset.ids, subset.class_names, strict=True):
            theirs = _IMAGENET_CATEGORIES[number].lower()
            words = set(re.findall(r"[a-z]+", name.lower()))
            assert words & set(re.findall(r"[a-z]+", theirs)), (name, theirs)


def test_unknown_names_give_the_nearest():
    with pytest.raises(UserError, match=r"unknown dataset 'cifar1'.*did you mean 'cifar10'"):
        bench.data.info("cifar1")


def test_missing_data_says_where_and_how(root):
    for name in set(bench.data.names()) - {"digits", "debug"}:
        assert bench.data.locate(name) is None
        with pytest.raises(MissingData) as caught:
            bench.data.require(name)
        assert caught.value.where == str(root)
        assert f"put {name}.npz" in caught.value.hint
        assert ("ddbench data get" in caught.value.hint) == bool(lookup.entry_of(name).download)
        facts = bench.data.describe(name)
        assert facts["found"] is None
        assert facts["remedy"] == caught.value.hint
    with pytest.raises(MissingData, match="imagenet/"):
        bench.data.load("imagefruit")
    with pytest.raises(MissingData):
        bench.data.get("cifar100_part")


def test_plugins_are_found_and_broken_ones_left_out(monkeypatch):
    good = Entry(bench.data.info("debug").model_copy(update={"name": "mine"}), make="bench.data.sources:debug")
    targets = {"mine": good, "debug": good, "other": good, "broken": UserError("broken cannot be loaded")}

    class Plugins:
        def names(self):
            return list(targets)

        def get(self, name):
            if isinstance(targets[name], Exception):
                raise targets[name]
            return targets[name]

    assert lookup.PLUGINS.group == "ddbench.datasets"
    monkeypatch.setattr(lookup, "PLUGINS", Plugins())
    with pytest.warns(UserWarning, match="ignored|broken") as warned:
        found = lookup.entries.__wrapped__()
    assert found["mine"] is good
    assert found["debug"] is not good
    assert not {"other", "broken"} & found.keys()
    assert [str(w.message).split(":")[0] for w in warned] == [
        "plug-in dataset 'debug' is ignored",
        "plug-in dataset 'other' is ignored",
        "broken cannot be loaded",
    ]


def test_an_entry_anywhere_else_goes_by_module_and_attribute(tmp_path, monkeypatch, root):
    (tmp_path / "my_data.py").write_text(
        "from bench.data.catalogue import ENTRIES, Entry\n"
        "info = ENTRIES['debug'].info.model_copy(update={'name': 'mine', 'family': 'mine'})\n"
        "MADE = Entry(info, make='bench.data.sources:debug', home='bench.data.sources:debug_home')\n"
        "FILES = Entry(info)\n"
        "WRONG = info\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert bench.data.info("my_data:MADE").name == "my_data:MADE"
    loaded = bench.data.load("my_data:MADE")
    assert (loaded.info.name, loaded.content) == ("my_data:MADE", bench.data.info("debug").content)
    assert bench.data.load("my_data:MADE@rare(share=0.5)").train.groups.sum() > 0
    with pytest.raises(MissingData, match=r"put my_data\.FILES\.npz"):
        bench.data.require("my_data:FILES")
    debug = bench.data.load("debug")
    halves = {"x_train": debug.train, "x_test": debug.test}
    arrays = {name: half.images.permute(0, 2, 3, 1).numpy() for name, half in halves.items()}
    arrays |= {name.replace("x", "y"): half.labels.numpy() for name, half in halves.items()}
    arrays |= {name.replace("x", "g"): half.groups.numpy() for name, half in halves.items()}
    np.savez(root / "my_data.FILES.npz", **arrays)
    assert bench.data.load("my_data:FILES").content == debug.content
    for name, words in {
        "my_data:WRONG": "is a DatasetInfo .*bench.data.catalogue.Entry",
        "my_data:NONE": "cannot be loaded from my_data:NONE",
        "no_such_module:DATA": "No module named 'no_such_module'",
    }.items():
        with pytest.raises(UserError, match=words):
            bench.data.info(name)
