"""For all tests: how long one example takes says nothing where other processes want the same cores."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("shared cores", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared cores")
