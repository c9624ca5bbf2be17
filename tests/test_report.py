"""The report: what the page shows of the cases, what it says of missing ones, and which files it refuses."""

from __future__ import annotations

import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastsam2.benchmarks import report, report_plots
from fastsam2.benchmarks.report import write_report
from fastsam2.benchmarks.report_cases import Case, Group, Record, read_groups
from fastsam2.benchmarks.report_goals import verdicts
from fastsam2.benchmarks.report_page import markdown
from fastsam2.benchmarks.report_plots import DARK, LIGHT, PLOTS
from fastsam2.errors import BackendError, PromptError

pytest.importorskip("matplotlib", reason="the package matplotlib is not installed")

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
CPU = {"date": "2026-01-02", "commit": "abc1234", "cpu": "Some CPU", "threads": 2, "command": "fastsam2 bench nano"}
RATES = {"copy_bytes_per_s": 2e10, "multiply_adds_per_s": 1e11, "precision": "fp32"}
BARE = {"model": "tiny", "image_size": 1024, "backend": "onnxruntime", "objects": 1, "keep": 1.0, "ours_ms": 100.0}


def case(objects: int = 1, keep: float = 1.0, ours: float = 100.0, official: float = 150.0, **more: Any) -> dict[str, Any]:
    pairs = [[official * f, ours] for f in (0.8, 1.0, 1.1)]
    return {
        **BARE,
        "objects": objects,
        "policy": "dense" if keep == 1 else "mask",
        "keep": keep,
        "memory_share": 1.0 if keep == 1 else 0.25,
        "boundary": "end_to_end",
        "ours_ms": ours,
        "official_ms": official,
        "ratio": official / ours,
        "ratio_spread": [0.8 * official / ours, 1.1 * official / ours],
        "pairs": pairs,
        "frames_ms": {"p50": ours, "p90": 1.1 * ours, "p99": 1.2 * ours},
        "mask_iou": 0.9996 if keep == 1 else 0.93,
        "stages_ms": {"memory_attention": {"median": 0.5 * ours, "p90": ours}, "image_encoder": {"median": 0.3 * ours, "p90": ours}},
        "graphs": {"image_encoder": {"multiply_adds": 3 * 10**9, "least_bytes": 10**7, "ms": 0.3 * ours}},
        "peak_bytes": 2 << 30,
        "official_peak_bytes": 3 << 30,
        "bytes_per_object": 4 << 20,
        "energy_j_per_frame": 5.5,
        "command": f"fastsam2 bench nano --objects {objects} --keep {keep:g}",
        **more,
    }


ALL = [case(), case(keep=0.05, ours=80, official=150), case(8, ours=700, official=1000), case(8, 0.05, ours=400, official=1000)]


def save(file: Path, content: object) -> Path:
    file.write_text(json.dumps(content))
    return file


def groups_of(cases: list[dict[str, Any]], **more: Any) -> list[Group]:
    record = Record.model_validate({**CPU, **more, "cases": cases})
    return [Group("title", record, record.cases, record.machine)]


class Loads(HTMLParser):
    """What a page would load, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every plot."""
    folder = tmp_path_factory.mktemp("report")
    file = save(folder / "bench.json", {**CPU, "machine": RATES, "cases": ALL})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_DPI", 40)
        page = write_report([file], out=folder / "out")
    assert page == folder / "out" / "index.html"
    return folder / "out"


def test_the_page_loads_nothing_and_holds_every_plot_for_light_and_dark(written: Path) -> None:
    page = Loads((written / "index.html").read_text(encoding="utf-8"))
    assert len(page.sources) == 2 * len(PLOTS) and all(s.startswith("data:image/png;base64,") for s in page.sources)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "url(" not in (written / "index.html").read_text(encoding="utf-8")
    assert sorted(p.name for p in written.iterdir()) == sorted(["index.html", "report.md", *(f"{p.name}.png" for p in PLOTS)])
    for plot in PLOTS:
        with Image.open(written / f"{plot.name}.png") as image:
            pixels = np.asarray(image.convert("RGB"))
        assert (pixels[0, 0] == 255).all() and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_the_page_says_what_was_measured_and_how(written: Path) -> None:
    text = Loads((written / "index.html").read_text(encoding="utf-8")).text
    for wanted in ("Some CPU, 2 threads", "abc1234", "2026-01-02", "fastsam2 bench nano --objects 8 --keep 0.05", "1.50x", "1.20 to 1.65"):
        assert wanted in text, wanted
    for wanted in ("0.9996", "25 %", "2048", "3072", "5.50", "count only if their masks agree", *(plot.title for plot in PLOTS)):
        assert wanted in text, wanted
    assert "Not shown" not in text


def test_the_table_to_paste(written: Path) -> None:
    lines = (written / "report.md").read_text(encoding="utf-8").splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables[:6]} == {len(tables[0].split("|")) - 1}
    row = next(line for line in tables if line.startswith("| 8 objects, keep 0.05, mask | end to end"))
    assert [cell.strip() for cell in row.split("|")[3:9]] == ["400", "1000", "2.50x", "2.00 to 2.75", "3", "2x"]
    assert any("abc1234" in line for line in lines)


def test_what_is_missing_is_said_and_its_old_plot_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_DPI", 30)
    file = save(tmp_path / "bench.json", {"cases": [BARE]})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stages.png").write_bytes(b"of another report")
    page = Loads(write_report([file], out=tmp_path / "out").read_text(encoding="utf-8"))
    assert page.sources == [] and sorted(p.name for p in (tmp_path / "out").iterdir()) == ["index.html", "report.md"]
    assert "Not shown" in page.text and "no commands of their own" in page.text and "not measured" in page.text
    for reason in ("stages_ms", "ratio", "more than one number of objects", "memory_share", "peak_bytes", "graphs", "frames_ms", "NVML"):
        assert reason in page.text, reason


def test_markup_in_a_file_stays_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_DPI", 30)
    hostile = case(model="<script>alert(1)</script>|", policy="<u>", counts=False, counts_why="<b>", command="<i>")
    file = save(tmp_path / "bench.json", {**CPU, "cpu": "<img src=x>", "cases": [hostile]})
    page = Loads(write_report([file], out=tmp_path).read_text(encoding="utf-8"))
    assert not {"script", "b", "i", "u"} & set(page.tags) and all(s.startswith("data:") for s in page.sources)
    assert "<script>alert(1)</script>" in page.text
    assert "does not count: <b>." in page.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**CPU, "cases": [{**BARE, "ours_ms": -1}]}, r"a legal cases\.0\.ours_ms in .*bench\.json, got -1"),
        ({**CPU, "cases": [BARE, {**BARE, "stages_ms": {"decode": {"median": "fast", "p90": 1}}}]}, r"cases\.1\.stages_ms\.decode\.median"),
        ({**CPU, "cases": [{k: v for k, v in BARE.items() if k != "objects"}]}, r"cases\.0\.objects"),
        ({**CPU, "cases": [{**BARE, "pairs": [[1, 2, 3]]}]}, r"cases\.0\.pairs\.0"),
        ({**CPU, "cases": [{**BARE, "mask_iou": 1.5}]}, r"cases\.0\.mask_iou"),
        ({**CPU, "cases": [{**BARE, "ratio": None, "ours_ms": float("nan")}]}, r"cases\.0\.ours_ms"),
        ({**CPU, "machine": {"copy_bytes_per_s": 0, "multiply_adds_per_s": 1}, "cases": []}, r"machine\.copy_bytes_per_s"),
        ({**CPU, "cases": {}}, "a legal cases in"),
        ({**CPU, "cases": []}, "at least one case, got none"),
        ([BARE], "an object with cases or machine in .*, got list"),
        ({"rows": 3}, r"got keys \['rows'\]"),
    ],
)
def test_malformed_files_are_refused_by_field(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=message):
        write_report([save(tmp_path / "bench.json", content)], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_and_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"cases": [')
    for file in (tmp_path / "broken.json", tmp_path / "none.json", tmp_path):
        with pytest.raises(PromptError, match="readable JSON in"):
            write_report([file], out=tmp_path / "out")
    with pytest.raises(PromptError, match="a folder to write"):
        write_report([save(tmp_path / "bench.json", {"cases": [BARE]})], out=tmp_path / "broken.json")


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BackendError, match=r"fastsam2\[plots\]"):
        write_report([save(tmp_path / "bench.json", {"cases": [BARE]})], out=tmp_path / "out")


def test_cases_are_grouped_by_what_may_be_compared(tmp_path: Path) -> None:
    one = save(tmp_path / "a.json", {**CPU, "cases": [BARE, {**BARE, "objects": 8}, {**BARE, "image_size": 512}]})
    other = save(tmp_path / "b.json", {**CPU, "threads": 8, "cases": [BARE, {**BARE, "precision": "fp16"}]})
    groups = read_groups([one, other])
    assert [len(g.cases) for g in groups] == [2, 1, 1, 1]
    assert len({g.title for g in groups}) == 4 and groups[0].title == "tiny at 1024 px · onnxruntime fp32 · Some CPU, 2 threads"


def test_rates_belong_to_their_machine_and_precision(tmp_path: Path) -> None:
    bench = save(tmp_path / "a.json", {**CPU, "cases": [BARE, {**BARE, "precision": "fp16"}]})
    own = save(tmp_path / "m.json", {**CPU, "machine": RATES})
    half = save(tmp_path / "h.json", {**CPU, "machine": {**RATES, "precision": "fp16"}})
    other = save(tmp_path / "o.json", {**CPU, "threads": 1, "machine": RATES})
    assert [g.rates is not None for g in read_groups([bench, own])] == [True, False]
    assert [g.rates.precision for g in read_groups([bench, own, half]) if g.rates] == ["fp32", "fp16"]
    assert [g.rates for g in read_groups([bench, other])] == [None, None]


def test_one_of_two_boundaries_is_drawn() -> None:
    (group,) = groups_of([case(), case(boundary="model", ours=90.0), case(8, boundary="model")])
    assert [(c.objects, c.ours_ms) for c in group.shown] == [(1, 100.0), (8, 100.0)]
    assert markdown([group]).count("| model |") == 2


def said(cases: list[dict[str, Any]], **more: Any) -> dict[tuple[str, str], bool | None]:
    return {(v.goal, v.case): v.met for v in verdicts(groups_of(cases, **more)[0])}


def test_goals_on_a_cpu() -> None:
    dense, one = "dense, at least 1.1x the official", "pruned, 1 object, at least 1.3x the official"
    eight = "pruned, 8 objects, at least 2x the official"
    assert said(ALL) == {
        (dense, "1 object, dense"): True,
        (dense, "8 objects, dense"): True,
        (one, "1 object, keep 0.05, mask"): True,
        (eight, "8 objects, keep 0.05, mask"): True,
    }
    assert said([case(official=109)]) == {(dense, "1 object, dense"): False, (one, ""): None, (eight, ""): None}
    assert said([case(counts=False, counts_why="masks")])[dense, "1 object, dense"] is False
    assert said([case(keep=0.05, official=129)])[one, "1 object, keep 0.05, mask"] is False
    assert said([case(8, 0.05, official=199)])[eight, "8 objects, keep 0.05, mask"] is False
    unlike = case(counts=False, counts_why="masks")
    assert said([unlike, case(keep=0.05, official=300)])[one, "1 object, keep 0.05, mask"] is False, "its masks are held against dense ones"
    assert said([case(4, 0.05)]) == {(dense, ""): None, (one, ""): None, (eight, ""): None}


def test_goals_on_a_gpu() -> None:
    one, sixteen = "1 object, at least 2x the official compiled", "16 objects, at least 6x the official compiled"
    peak = "at most 62.6 % of the official peak memory"
    memory: dict[str, Any] = {"device_peak_bytes": 626, "official_device_peak_bytes": 1000}
    eager: dict[str, Any] = {"against": "official"}
    compiled: dict[str, Any] = {"against": "official-compiled"}
    assert said([case(official=500, **eager)], gpu="H200") == {(one, ""): None, (sixteen, ""): None, (peak, "1 object, dense"): False}
    assert said([case(official=200, **compiled, **memory), case(16, official=599, **compiled)], gpu="H200") == {
        (one, "1 object, dense"): True,
        (sixteen, "16 objects, dense"): False,
        (peak, "1 object, dense"): True,
        (peak, "16 objects, dense"): False,
    }
    assert said([case(official=200, counts=False, **compiled, **memory)], gpu="H200")[peak, "1 object, dense"] is False


def axes_of(draw: report_plots.Draw, cases: list[dict[str, Any]], **more: Any) -> list[Any]:
    figure = draw(groups_of(cases, **more), LIGHT)
    assert not isinstance(figure, str), figure
    figure.canvas.draw()
    return list(figure.axes)


def test_stages_are_stacked_in_the_order_of_a_frame_up_to_the_whole_frame() -> None:
    (axis,) = axes_of(report_plots.stages, [case()])
    bars = [(bar.get_x(), bar.get_width()) for bar in axis.patches]
    expected = [(0, 30), (30, 50), (80, 20), (0, 150)]  # encoder, attention, rest; the official frame
    np.testing.assert_allclose(bars, expected)
    assert axis.get_xlim()[0] == 0


def test_a_waited_pass_that_took_longer_has_no_rest() -> None:
    (axis,) = axes_of(report_plots.stages, [case(stages_ms={"image_encoder": {"median": 120.0, "p90": 130.0}})])
    assert [bar.get_width() for bar in axis.patches] == [120.0, 150.0]


def test_frames_per_second_are_those_of_the_cases() -> None:
    (axis,) = axes_of(report_plots.objects, ALL)
    lines = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}
    lines |= {c.get_label(): c.lines[0] for c in axis.containers}
    assert {name: [tuple(p) for p in np.round(line.get_xydata(), 6)] for name, line in lines.items()} == {
        "dense": [(1, 10.0), (8, round(1e3 / 700, 6))],
        "keep 0.05, mask": [(1, 12.5), (8, 2.5)],
        "official": [(1, round(1e3 / 150, 6)), (8, 1.0)],
    }
    assert axis.get_ylim()[0] == 0


def test_spread_of_frames_per_second_is_from_the_10th_to_the_90th_percentile() -> None:
    times = [100.0, 80.0, 125.0, 100.0, 100.0]
    (axis,) = axes_of(report_plots.objects, [case(pairs=[[150, t] for t in times]), case(8)])
    (low, high) = axis.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((1e3 / np.quantile(times, 0.9), 1e3 / np.quantile(times, 0.1)))


def test_memory_against_rows_is_of_all_objects_together() -> None:
    speed, memory = axes_of(report_plots.rows, ALL)
    values = {line.get_label(): [tuple(p) for p in line.get_xydata()] for line in memory.lines}
    assert values == {"1 object": [(25.0, 4.0), (100.0, 4.0)], "8 objects": [(25.0, 32.0), (100.0, 32.0)]}
    assert speed.get_ylim()[0] == memory.get_ylim()[0] == 0


def test_a_graph_lies_under_the_roof_where_its_work_and_time_put_it() -> None:
    (axis,) = axes_of(report_plots.roofline, [case()], machine=RATES)
    roof, point = (line.get_xydata() for line in axis.lines[:2])
    assert point == pytest.approx(np.array([[300.0, 100.0]]))  # 3 G in 10 MB; 3 G in 30 ms, in G a second
    x, y = roof.T
    np.testing.assert_allclose(y, np.minimum(20 * x, 100))
    assert x[0] < 5 < x[-1], "the ridge is in sight"


def test_ratios_show_range_goal_and_what_does_not_count() -> None:
    (axis,) = axes_of(report_plots.ratios, [case(counts=False)])
    spread, median, goal, one = (line.get_xdata() for line in axis.lines)
    assert list(spread) == pytest.approx([1.2, 1.65]) and list(median) == [1.5] and list(goal) == [1.1, 1.1] and list(one) == [1, 1]
    assert [t.get_text() for t in axis.texts] == ["1.50x (does not count)"]
    assert axis.get_xlim()[0] == 0 and axis.get_yticklabels()[0].get_text() == "1 object, dense, 3 pairs"


def test_peaks_of_the_device_come_before_those_of_the_process() -> None:
    (process,) = axes_of(report_plots.peaks, [case()])
    assert [bar.get_width() for bar in process.patches] == [2.0, 3.0]
    (device,) = axes_of(report_plots.peaks, [case(device_peak_bytes=1 << 30, official_device_peak_bytes=5 << 30)])
    assert [bar.get_width() for bar in device.patches] == [1.0, 5.0] and "device" in device.get_xlabel()


def test_percentiles_and_energy() -> None:
    (axis,) = axes_of(report_plots.percentiles, [case()])
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([100, 110, 120])
    (axis,) = axes_of(report_plots.energy, [case()])
    assert [bar.get_width() for bar in axis.patches] == [5.5]


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_stands_out_from_the_paper(theme: report_plots.Theme) -> None:
    """By the contrast of WCAG, 7 of 21 at least; rendered corners are the paper."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    low, high = sorted((luminance(theme.ink), luminance(theme.paper)))
    assert (high + 0.05) / (low + 0.05) > 7
    figure = report_plots.energy(groups_of([case()]), theme)
    assert not isinstance(figure, str)
    with Image.open(io.BytesIO(report._png(figure))) as image:
        assert bytes(np.asarray(image.convert("RGB"))[0, 0]).hex() == theme.paper[1:]


def is_bench(file: Path) -> bool:
    content = json.loads(file.read_text(encoding="utf-8"))
    return any({"ours_ms", "model", "backend"} <= case.keys() for case in content.get("cases", []))


@pytest.mark.parametrize("file", [f for f in sorted(RESULTS.glob("*.json")) if is_bench(f)], ids=lambda f: f.stem)
def test_committed_results_are_read(file: Path) -> None:
    assert sum(len(group.cases) for group in read_groups([file])) == len(json.loads(file.read_text(encoding="utf-8"))["cases"])
    assert all(isinstance(c, Case) for group in read_groups([file]) for c in group.cases)
