import pytest
from prunebench_example import FacilityLocation

from prunebench.testing import strategy_checks


@pytest.mark.parametrize("check", strategy_checks(FacilityLocation))
def test_conformance(check):
    check()
