"""One report and one log line per unit, and one live bar."""

import logging
import re

import pytest

from isvit_lightning.callbacks import UnitProgress
from isvit_lightning.callbacks import progress as progress_module
from isvit_lightning.networks import open_float
from isvit_lightning.stages import Fold, FoldStage, Schedule, UnitStage, Work
from tests.helpers import image_batch, quantized_network, tiny_vit
from tests.stages.fitting import STAGE1, STAGE3, EachStep, make_stage, run

LINE = re.compile(r"^stage3 unit (\d)/4 (\S+): loss (\S+) → (\S+) in \d+\.\d s$")


@pytest.mark.parametrize("iterations", [1, 3])
def test_one_line_and_one_report_per_unit(iterations: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, progress_module.__name__)
    progress = UnitProgress()
    stage = make_stage(STAGE3, tiny_vit(), image_batch(16, 4), Schedule(iterations, 4))
    run(stage, progress)
    lines = [record.getMessage() for record in caplog.records if record.name == progress_module.__name__]
    names = [unit.name for unit in stage.quantized.units]
    assert [report.unit for report in progress.reports] == names
    for number, (line, report) in enumerate(zip(lines, progress.reports, strict=True), start=1):
        found = LINE.match(line)
        assert found, line
        assert found.groups() == (str(number), report.unit, f"{report.first:.4g}", f"{report.last:.4g}")
        assert report.stage == "stage3"
        assert report.first > 0
        assert report.last > 0
        assert report.seconds > 0
        assert (report.first == report.last) is (iterations == 1)


def test_a_fold_reports_a_relative_change(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, progress_module.__name__)
    model, images, progress = tiny_vit(), image_batch(16, 4), UnitProgress()
    quantized = quantized_network(model, images, folded=False)
    run(FoldStage(Fold("stage2"), Work(quantized, open_float(model), images, Schedule())), progress)
    lines = [record.getMessage() for record in caplog.records if record.name == progress_module.__name__]
    assert [line.split(":")[0] for line in lines] == ["stage2 unit 1/2 blocks.0", "stage2 unit 2/2 blocks.1"]
    assert all("relative change 0 → " in line for line in lines)


def test_reports_of_several_stages_add_up() -> None:
    progress = UnitProgress(live=False)
    for choice in (STAGE1, STAGE3):
        run(make_stage(choice, tiny_vit(), image_batch(16, 4), Schedule(1, 4)), progress)
    assert [report.stage for report in progress.reports] == ["stage1"] * 3 + ["stage3"] * 4


def test_an_error_closes_the_bar() -> None:
    progress = UnitProgress()

    def fail(stage: UnitStage, step: int) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run(make_stage(STAGE1, tiny_vit(), image_batch(16, 4), Schedule(1, 4)), progress, EachStep(fail))
    assert progress._bar is None


def test_no_bar_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    run(make_stage(STAGE1, tiny_vit(), image_batch(16, 4), Schedule(2, 4)), UnitProgress())
    printed = capsys.readouterr()
    assert "unit 1/" not in printed.out
    assert "━" not in printed.err
