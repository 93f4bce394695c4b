"""All tasks that the tests know, by their names."""

from __future__ import annotations

from tests.lmms.synthetic.audio_tasks import AUDIO
from tests.lmms.synthetic.case import Case
from tests.lmms.synthetic.image_tasks import IMAGE
from tests.lmms.synthetic.reading_tasks import READING
from tests.lmms.synthetic.text_tasks import TEXT
from tests.lmms.synthetic.video_tasks import VIDEO

__all__ = ["CASES", "ELSEWHERE", "PAPER"]

CASES: dict[str, Case] = {case.task: case for case in (*IMAGE, *READING, *VIDEO, *AUDIO, *TEXT)}

PAPER = (
    "mme", "mmmu_val", "mathvista_testmini_format", "mmbench_en_dev_static",
    "clotho_aqa_test", "muchomusic", "videomme", "nextqa_mc_test",
)  # fmt: skip
"""The eight of TopoVLM's two tables."""

ELSEWHERE = {
    "gqa": "its code fetches the pictures from the Hub, whatever data it is given",
    "mvbench": "a group: test_single_tasks.py",
    "testbed_general": "our own questions: test_testbed.py",
    "testbed_math": "our own questions: test_testbed.py",
    "testbed_video": "our own questions: test_testbed.py",
    "testbed_audio": "our own questions: test_testbed.py",
}
"""Tasks of the suites that ship which are not in `CASES`, and why."""
