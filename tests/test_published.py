"""Published figures that are kept here add up as their authors printed them, or it is known where they do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

PUBLISHED = Path(__file__).parents[1] / "baselines" / "published"
SHORT_LVLM = yaml.safe_load((PUBLISHED / "short_lvlm.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("row", SHORT_LVLM["rows"], ids=lambda row: f"{row['model']}-{row['removed']}")
def test_short_lvlm_s_average_is_the_mean_with_mme_by_20(row):
    rule = SHORT_LVLM["average"]
    scores = dict(zip(SHORT_LVLM["tasks"], row["scores"], strict=True))
    parts = [score / rule["divide"].get(task, 1) for task, score in scores.items()]
    # Half a unit of the last printed digit, and as much for the rounding of the six figures themselves.
    assert sum(parts) / len(parts) == pytest.approx(row["average"], abs=1.0 * 10 ** -rule["decimals"])
    plain = sum(scores.values()) / len(scores)
    assert abs(plain - row["average"]) > 100  # MME as it stands would be most of the average
