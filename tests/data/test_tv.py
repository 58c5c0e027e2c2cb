import subprocess
import sys

import pytest

from bench import tv
from bench.errors import UserError


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_torchvision_works_beside_this_torch():
    code = (
        "from bench import tv\n"
        "vision = tv.torchvision()\n"
        "import torchvision, torchvision.models, torchvision.transforms.v2, torchvision.utils\n"
        "assert vision is torchvision and vision is tv.torchvision()\n"
        "print(torchvision.utils.make_grid(__import__('torch').zeros(4, 3, 8, 8)).shape)\n"
        "print(tv.state())\n"
        "import torchvision.extension\n"
        "assert bool(tv._declared) != torchvision.extension._has_ops()  # declared only where they do not load"
    )
    found = run(code)
    assert found.returncode == 0, found.stderr
    assert "torch.Size" in found.stdout
    assert "compiled operators" in found.stdout


def test_nothing_is_declared_when_operators_load(monkeypatch):
    tv.torchvision()
    monkeypatch.setattr(tv, "_operators_load", lambda: True)
    monkeypatch.setattr(tv, "_declare", lambda: pytest.fail("declared for nothing"))
    monkeypatch.delitem(sys.modules, "torchvision")
    sys.modules["torchvision"] = tv.torchvision()  # cached: the module does not come in twice
    tv.torchvision.__wrapped__()
    monkeypatch.setattr(tv, "_declared", [])
    assert tv.state().endswith("compiled operators loaded")


def test_a_missing_torchvision_is_a_user_error():
    code = "import sys; sys.modules['torchvision'] = None\nfrom bench import tv\nprint(tv.state())\ntv.torchvision()"
    found = run(code)
    assert "not usable" in found.stdout
    assert UserError.__name__ in found.stderr
    assert "pip install -c constraints.txt torchvision" in found.stderr
