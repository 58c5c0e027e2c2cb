"""RDD over IDC: the networks of IDC are trained under the group risk. A combination that is not published.

IDC trains its networks on real images already, batch after batch, so RDD (Vahidian et al., ICLR 2025) only adds its
term to that loss: in every third batch the group risk of all images since the last time (`methods/risk.py`). Groups
form around the decoded synthetic images. Which network decides is fixed for `interval` updates of the images: the
anchors are embedded, and a copy of the network is kept that embeds each batch of real images. Under CutMix an image
belongs to the group it had before, and its loss is that of both labels. Matching is untouched.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from bench.api import DatasetInfo, Preset, param
from bench.lazy import torch
from methods.idc import IDC, IDCParams
from methods.rdd import CITATION, GroupParams, anchors
from methods.risk import RiskLoss, embed, nearest

if TYPE_CHECKING:
    from torch import Tensor


class RDDIDCParams(GroupParams, IDCParams):
    """Hyper-parameters of IDC and of the risk."""

    interval: int = param(
        10, "updates of the images until groups form anew", source="an unused flag of the RDD code", ge=1
    )


class RDDIDC(IDC):
    """IDC with networks trained under the group risk."""

    Params = RDDIDCParams
    title = "RDD on IDC: group risk on multi-formed images (combination, not published)"
    citation = f"{CITATION}, on Kim et al., ICML 2022"

    @classmethod
    def preset(cls, dataset: DatasetInfo, ipc: int) -> Preset:
        """Return IDC's setting, without a source: the combination is not published."""
        return Preset(super().preset(dataset, ipc).params, None)

    def step(self) -> dict[str, float | Tensor]:
        """Do one outer iteration of IDC; log the last risk as well."""
        self.trainings, self.risk = 0, None
        logged = super().step()
        return logged if self.risk is None else {**logged, "risk": self.risk}

    def train_network(self, count: int) -> None:
        """Train the network as IDC does, with new groups every `interval` times."""
        if count and self.params.risk != "none":
            if self.trainings % self.params.interval == 0:
                self.regroup()
            self.trainings += 1
        super().train_network(count)

    def regroup(self) -> None:
        """Fix what real images are grouped by from here on."""
        with self.task.phase("network"), torch.no_grad():
            around = anchors(self.set.images(), len(self.set.counts), self.params)
            self.grouper = copy.deepcopy(self.model).train()
            self.around = embed(self.grouper, around)
            self.objective = RiskLoss(self.params, len(around))

    def network_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss on a batch of augmented real images, 0-d."""
        if self.params.risk == "none":
            return super().network_loss(images, labels)
        groups = nearest(embed(self.grouper, images), self.around)
        loss = self.objective(self.model, *self.mix(images, labels), groups)
        self.risk = self.objective.risk
        return loss
