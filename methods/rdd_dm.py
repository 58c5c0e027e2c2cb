"""RDD over DM: distribution matching that minds groups. Combinations that are not published.

RDD (Vahidian et al., ICLR 2025) changes the training of networks on real images, and DM never trains one. So either

    where: network     each fresh network is first trained for some epochs on real images under the group risk, as in
                       RDD over DC, and its features are matched
    where: matching    networks stay as drawn, and groups enter the distance. The real images of a class fall into
                       groups T_1, T_2, ... around the nearest synthetic image of the class, in feature space, and
                           lambda_mean * mean over k of D_k + lambda_max * maximum over k of D_k,
                           D_k = ||mean features of T_k - mean features of the synthetic images||^2
                       takes the place of D; with a single group and lambda_max 0 it is DM
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from bench.api import DatasetInfo, Preset, param
from bench.lazy import torch
from methods.dm import DM, DMParams
from methods.matching import group_means
from methods.rdd import CITATION, GroupParams, anchors, train_under_risk
from methods.risk import group_sizes

if TYPE_CHECKING:
    from torch import Tensor

    from bench.api import Task
    from bench.data import Batch


class RDDDMParams(GroupParams, DMParams):
    """Hyper-parameters of DM, of the risk, and of the network's training. What training there is, is RDD's."""

    where: Literal["network", "matching"] = param("network", "what the groups change")
    train_epochs: int = param(2, "training of each fresh network (`network`)", unit="epochs", source="as RDD", ge=0)
    batch_train: int = param(256, "batch of the network's training", unit="images", source="as RDD", ge=1)
    lr_net: float = param(0.01, "learning rate of the network (plain SGD)", source="as RDD", ge=0)


class RDDDM(DM):
    """Distribution matching under the group risk."""

    Params = RDDDMParams
    title = "RDD on DM: group risk on distribution matching (combination, not published)"
    citation = f"{CITATION}, on Zhao and Bilen, WACV 2023"

    @classmethod
    def preset(cls, dataset: DatasetInfo, ipc: int) -> Preset:
        """Return DM's setting, without a source: the combination is not published."""
        return Preset(super().preset(dataset, ipc).params, None)

    def start(self, task: Task) -> None:
        """Create the images and the network that every iteration draws anew."""
        super().start(task)
        self.model_optimiser = torch.optim.SGD(self.model.parameters(), lr=self.params.lr_net)  # no momentum: no state

    def step(self) -> dict[str, float | Tensor]:
        """Do one iteration of DM; log the risk and the training as well."""
        self.risk: Tensor | None = None
        self.trained_on = self.network_steps = 0
        logged: dict[str, Any] = super().step()
        logged["real_images"] += self.trained_on
        logged["network_steps"] = self.network_steps
        return logged if self.risk is None else {**logged, "risk": self.risk}

    def draw_network(self) -> None:
        """Draw the network of this iteration, and train it."""
        super().draw_network()
        p, task = self.params, self.task
        if p.where == "matching" or not p.train_epochs:
            return
        with task.phase("data"):
            real = task.data.train.sample_classes(2 * p.batch_real, task.rng("pool"))
            self.trained_on = len(real.labels)
        with task.phase("network"), torch.no_grad():
            around = anchors(self.set.images(), len(self.set.counts), p)
        with task.phase("network"):
            self.model.requires_grad_(True)
            self.network_steps, self.risk = train_under_risk(
                task, self.model, self.model_optimiser, real[:2], around, p, p.train_epochs, p.batch_train
            )
            self.model_optimiser.zero_grad()
            self.model.requires_grad_(False)

    def match(self, real: Batch, synthetic: Batch) -> tuple[Tensor, Tensor]:
        """Return the distance of each class and the derivative of their sum by the synthetic images."""
        p = self.params
        if p.where == "network" or p.risk != "paper":
            return super().match(real, synthetic)
        classes = len(synthetic.counts)
        images = synthetic.images.detach().requires_grad_()
        features = self.model.features(images)
        with torch.no_grad():
            targets = self.model.features(real.images)
            around = self.model.features(anchors(images.detach(), classes, p)).unflatten(0, (classes, -1))
        gaps, sizes = group_gaps(targets, real.counts, group_means(features, synthetic.counts), around)
        present = sizes > 0
        mean = gaps.where(present, 0).sum(1) / present.sum(1)
        losses = p.lambda_mean * mean + p.lambda_max * gaps.where(present, -torch.inf).amax(1)
        return losses.detach(), torch.autograd.grad(losses.sum(), images)[0]


def group_gaps(targets: Tensor, counts: tuple[int, ...], means: Tensor, around: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared distance of every group's mean from its class's, [C, k], and the groups' sizes, [C, k].

    targets: real features [n, f], sorted by class, `counts` of each. means: synthetic ones [C, f]. around: features
    of the k anchors of each class, [C, k, f]; a real image belongs to the nearest one of its class.
    """
    classes, k, _ = around.shape
    owner = torch.cat(
        [c * k + torch.cdist(rows, around[c]).argmin(1) for c, rows in enumerate(targets.split(list(counts)))]
    )
    sizes = group_sizes(owner, classes * k)
    centres = targets.new_zeros(classes * k, targets.shape[1]).index_add_(0, owner, targets)
    centres = centres / sizes.clamp(min=1)[:, None]
    gaps = (centres.unflatten(0, (classes, k)) - means[:, None]).square().sum(2)
    return gaps, sizes.view(classes, k)
