"""A group of an APM set: the plain run of the method at its part of the IPC and with a seed of its own.

One idea: as an artifact a group is a cell, so groups run side by side under any executor, are kept apart by
construction, and are distilled once whoever asks for them. A run over hours continues after a kill like any
distillation: its checkpoints are in the folder of the cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from bench.api import Artifact, Need, TaskSpec
from methods.apm import APM, APMParams

if TYPE_CHECKING:
    from torch import Tensor

    from bench.api import Task
    from bench.task import LiveTask


class APMSlice(Artifact):
    """The images of one group. Tensors: `images` float32 [n, c, h, w], sorted by class."""

    Params = APMParams
    version = APM.version
    title = "one group of an APM set"

    @classmethod
    def needs(cls, params: Any, spec: TaskSpec) -> Mapping[str, Need]:
        """Ask for the teachers."""
        return APM.needs(params, spec)

    def build(self, task: Task) -> Mapping[str, Tensor]:
        """Run the method."""
        from bench.loop import distil

        course = distil(APM(self.params), cast("LiveTask", task), folder=task.folder, report=task.report)
        assert course.distilled.images is not None
        return {"images": course.distilled.images}
