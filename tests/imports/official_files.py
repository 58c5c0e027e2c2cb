"""Files exactly as the official repositories write them: same calls, same keys, same order, same types.

Every writer takes plain tensors and returns the path to import. flax is not a dependency: `flax_bytes` packs what
`flax.serialization.to_bytes` packs (arrays as extension 1 of shape, name of the type, values).
"""

from __future__ import annotations

import pickle
from pathlib import Path

import msgpack
import numpy as np
import torch
from PIL import Image


def accuracies():
    """What DC keeps beside the images: NumPy numbers, by network."""
    return {"ConvNet": [np.float64(0.25), np.mean([0.25, 0.5])], "MLP": []}


def res(folder: Path, sets, **extra) -> Path:
    """DC, DSA, DM: `data` has a pair for each experiment. extra: `data_oe` of TrustDD."""
    path = folder / "res_DC_CIFAR10_ConvNet_1ipc.pt"
    data = [[images.clone(), labels.clone()] for images, labels in sets]
    torch.save({"data": data, **extra, "accs_all_exps": accuracies()}, path)
    return path


def res_legacy(folder: Path, sets) -> Path:
    """DC as its pinned torch 1.2 wrote it."""
    path = folder / "res_CIFAR10_ConvNet_1ipc.pt"
    data = [[images.clone(), labels.clone()] for images, labels in sets]
    saved = {"data": data, "accs_all_exps": accuracies()}
    torch.save(saved, path, _use_new_zipfile_serialization=False)
    return path


def trustdd(folder: Path, sets, outliers) -> Path:
    """TrustDD: outliers with labels that mean nothing."""
    return res(folder, sets, data_oe=[[images, torch.zeros(len(images), dtype=torch.int64)] for images in outliers])


def apm(folder: Path, images, logits) -> Path:
    path = folder / "gap50_ce0.5_CIFAR10_ConvNet_1ipc_best.pt"
    torch.save({"data": [images, logits], "accs_all_exps": accuracies()}, path)
    return path


def pair(folder: Path, images, labels, rate=None) -> Path:
    """MTT, TESLA, GLaD, RDD; `lr_best.pt` as their forks add it."""
    torch.save(images.clone().requires_grad_(), folder / "images_best.pt")
    torch.save(labels.clone(), folder / "labels_best.pt")
    if rate is not None:
        torch.save(rate, folder / "lr_best.pt")
    return folder / "images_best.pt"


def idc(folder: Path, images, labels) -> Path:
    torch.save([images.clone(), labels.clone()], folder / "data.pt")
    return folder / "data.pt"


def nhwc(images) -> np.ndarray:
    return images.permute(0, 2, 3, 1).contiguous().numpy()


def kip(folder: Path, images, labels) -> Path:
    path = folder / "ConvNet_ssize100_zca_nol_noaug_ckpt1000.npz"
    np.savez(path, images=nhwc(images), labels=labels.numpy())
    return path


def frepo_npz(folder: Path, images, labels) -> Path:
    path = folder / "step500000.npz"
    np.savez(path, image=nhwc(images), label=labels.numpy())
    return path


def flax_array(array: np.ndarray) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True))


def flax_bytes(state) -> bytes:
    return msgpack.packb(state, default=flax_array, strict_types=True)


def frepo_flax(folder: Path, images, labels) -> Path:
    """A checkpoint of FRePo's ProtoState, with the two moments of LAMB."""
    params = {"x_proto": nhwc(images), "y_proto": labels.numpy()}
    moments = {"count": np.array(7, np.int32), "mu": params, "nu": params}
    state = {
        "step": 7,
        "params": params,
        "opt_state": {"0": moments, "1": {}, "2": {}},
        "epoch": 0,
        "best_val_acc": 0.5,
        "ema_hidden": None,
        "ema_average": None,
        "ema_count": 0,
    }
    path = folder / "checkpoint_500000"
    path.write_bytes(flax_bytes(state))
    return path


def picture(path: Path, image) -> None:
    """One image of uint8 [c, h, w]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = image.permute(1, 2, 0).numpy()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(path)


def folders(folder: Path, images, labels, names) -> Path:
    """Lossless image folders, so that pixels can be compared bit by bit."""
    for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        picture(folder / "set" / names[label] / f"{index:05d}.png", image)
    return folder / "set"


def sre2l(folder: Path, images, labels) -> Path:
    """SRe2L's folders. The official code writes JPEG; PNG here, for the same reason as above."""
    seen: dict[int, int] = {}
    for image, label in zip(images, labels.tolist(), strict=True):
        number = seen[label] = seen.get(label, -1) + 1
        picture(folder / "syn" / f"new{label:03d}" / f"class{label:03d}_id{number:03d}.png", image)
    return folder / "syn"


def sre2l_labels(folder: Path, logits, batch=4, mixed=False, seed=42) -> Path:
    """SRe2L's stored labels: for each epoch [n, K] of `logits`, batches in the order its loader draws them."""
    generator = torch.Generator().manual_seed(seed)
    sampler = torch.utils.data.RandomSampler(range(len(logits[0])), generator=generator)
    loader = torch.utils.data.DataLoader(range(len(logits[0])), batch_size=batch, sampler=sampler)
    for epoch, rows in enumerate(logits):
        place = folder / "FKD" / f"epoch_{epoch}"
        place.mkdir(parents=True)
        for number, index in enumerate(loader):
            coords, flips = torch.rand(len(index), 4), torch.rand(len(index)) < 0.5
            mix = [torch.randperm(len(index)), 0.3, [np.int64(0), np.int64(1), 2, 3]] if mixed else [None] * 3
            torch.save([coords, flips, *mix, rows[index].half()], place / f"batch_{number}.tar")
    return folder / "FKD"


def npy(folder: Path, images, labels) -> Path:
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    return folder / "images.npy"


class Bomb:
    """Unpickling this makes the file it was given: what a malicious file would do."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.target}",)


def bombs(folder: Path) -> tuple[list[Path], Path]:
    """Files of every kind that would run a command when unpickled, and the file that the command makes."""
    target = folder / "executed"
    bomb = Bomb(target)
    torch.save({"data": [[bomb, torch.zeros(1)]]}, folder / "zip.pt")
    torch.save(bomb, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    (folder / "plain.pkl").write_bytes(pickle.dumps(bomb))
    np.save(folder / "images.npy", np.array([bomb, bomb], dtype=object), allow_pickle=True)
    np.savez(folder / "objects.npz", images=np.array([bomb], dtype=object), labels=np.zeros(1, int))
    np.savez(folder / "labels.npz", images=np.zeros((1, 8, 8, 1)), labels=np.array([bomb], dtype=object))
    torch.save(torch.zeros(1, 1, 8, 8), folder / "images_best.pt")
    torch.save(bomb, folder / "labels_best.pt")
    state = {"params": {"x_proto": msgpack.ExtType(1, pickle.dumps(bomb)), "y_proto": msgpack.ExtType(1, b"")}}
    (folder / "checkpoint_1").write_bytes(msgpack.packb(state))
    objects = msgpack.packb(((1, 2, 2, 1), "object", pickle.dumps(bomb)), use_bin_type=True)
    state = {"params": {"x_proto": msgpack.ExtType(1, objects), "y_proto": msgpack.ExtType(1, objects)}}
    (folder / "checkpoint_2").write_bytes(msgpack.packb(state))
    names = ("zip.pt", "legacy.pt", "plain.pkl", "images.npy", "objects.npz", "labels.npz", "images_best.pt")
    return [folder / name for name in (*names, "checkpoint_1", "checkpoint_2")], target
