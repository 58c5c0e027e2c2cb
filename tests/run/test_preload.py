"""The fork server has imported what cells of ddbench use."""

import subprocess
import sys

PROGRAM = """
import gc, sys
import bench.run.worker, bench.run.preload
from bench.data.lookup import PLUGINS
from bench.nets.spec import NETWORKS
from bench.registry import ARTIFACTS, DECODERS, EVALUATORS, METHODS
for registry in (METHODS, EVALUATORS, ARTIFACTS, DECODERS, NETWORKS):
    for target in registry.builtin.values():
        assert target.partition(":")[0] in sys.modules, target
for name in ("torch._dynamo", "bench.loop", "bench.task", "bench.train.trainer", "bench.data.sources"):
    assert name in sys.modules, name
for registry in (METHODS, EVALUATORS, ARTIFACTS, DECODERS, NETWORKS, PLUGINS):
    assert "targets" in vars(registry), registry.kind  # found once: a search through all installed packages
assert gc.isenabled()  # cells collect their own garbage, and leave alone what was imported
assert gc.get_freeze_count() > 100_000
assert "sklearn" not in sys.modules  # a second at every start, and slower forks, for few cells
"""


def test_cells_find_what_they_need_imported():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
