"""The method "forecast" with a plan that a test writes down."""

from collections.abc import Collection
from dataclasses import dataclass

from foresight.engine import ForecastConfig
from foresight.engine.forecast import Forecast
from foresight.engine.policy import policy_for


def computes(positions: Collection[float], **settings) -> ForecastConfig:
    """Settings with which the evaluations at these positions are computed, and no others."""

    @dataclass(frozen=True)
    class Told(ForecastConfig):
        """Settings of `Obedient`."""

    @policy_for(Told)
    class Obedient(Forecast):
        """Computes what it is told to."""

        def must_compute(self, place):
            return round(place.position, 3) in positions

    return Told(**{"threshold": 1.0, **settings})
