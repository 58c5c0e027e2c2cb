"""Groups of test images that nobody labelled: k-means on the pixels, or on the features of a network.

Vahidian et al. measure the worst of ten clusters of the test images (raw normalised pixels, labels ignored); their
released script fits the clusters anew for every network it tests. Here they are an artifact of the dataset alone: the
same groups for every method, seed and preprocessing, computed once and stored. The ten starts of k-means are stated,
because scikit-learn's default went from ten to one in version 1.4 and the groups went with it. The images are in the
canonical order of the dataset, so the groups are those of the published protocol but not of its files' order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from bench.api import Artifact, Need, Params, Task, param
from bench.errors import UserError
from bench.lazy import torch
from bench.nets import spec as nets

if TYPE_CHECKING:
    from torch import Tensor

SOURCE = "Vahidian et al. 2025, released code"
STARTS_SOURCE = f"{SOURCE}: the default of scikit-learn before 1.4"


class GroupsParams(Params):
    """One k-means of the test images."""

    space: Literal["pixels", "features"] = param("pixels", "normalised images, or features of the task's network")
    clusters: int = param(10, "number of groups, labels ignored", source=SOURCE, ge=2)
    starts: int = param(10, "starts of k-means, of which the best is kept", source=STARTS_SOURCE, ge=1)
    epochs: int = param(30, "training of the network whose features are grouped", unit="epochs", ge=1)


class Groups(Artifact):
    """Group the test images by k-means.

    Tensors: `groups` int64 [N], the group of each test image; `inertia` float64 [], the sum of squared distances.
    """

    Params = GroupsParams
    title = "Groups of test images by k-means"

    def build(self, task: Task) -> Mapping[str, Tensor]:
        """Cluster. Raises `UserError` where there are fewer images than groups."""
        rows = task.data.test.images().flatten(1) if self.params.space == "pixels" else self._features(task)
        if len(rows) < self.params.clusters:
            raise UserError(f"{len(rows)} test images cannot make {self.params.clusters} groups")
        return clusters(rows, self.params.clusters, self.params.starts)

    def _features(self, task: Task) -> Tensor:
        """Return the penultimate features of the test images, of a network trained as coreset selections train it."""
        from methods.dynamics import Dynamics, outputs

        network = Dynamics(Dynamics.Params(epochs=self.params.epochs)).fit(task)[0]
        return outputs(network, task.data.test.batches(1024))[0]


def clusters(rows: Tensor, count: int, starts: int) -> dict[str, Tensor]:
    """Return the groups of rows float32 [N, d] by scikit-learn's k-means with `random_state=0`.

    On one thread: several add up the centres in an order that differs from run to run.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        found = KMeans(n_clusters=count, n_init=starts, random_state=0).fit(rows.detach().cpu().numpy())
    return {
        "groups": torch.from_numpy(found.labels_).long(),
        "inertia": torch.tensor(float(found.inertia_), dtype=torch.float64),
    }


def of_pixels(clusters: int, starts: int) -> Need:
    """Return the groups of the raw normalised test pixels, as an artifact."""
    return _need("convnet", {"space": "pixels", "clusters": clusters, "starts": starts})


def of_features(clusters: int, starts: int, reference: str, epochs: int) -> Need:
    """Return the groups of the features of a reference network, as an artifact."""
    return _need(reference, {"space": "features", "clusters": clusters, "starts": starts, "epochs": epochs})


def _need(network: str, params: Mapping[str, Any]) -> Need:
    """Return the artifact for the dataset alone, whatever the asking task distils in and with."""
    task = {"ipc": None, "network": nets.parse(network), "preprocessing": "meanstd", "augment": "none", "seed": 0}
    return Need("groups", params, task)
