"""The README's marked commands and Python run as they stand, in order, in one folder."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from fastsam2 import cli
from fastsam2.enums import ExportTarget
from fastsam2.export import exporter
from tests.parity.clips import make_clip

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"<!-- run -->\n```(sh|python)\n(.*?)```", re.DOTALL)


def _write_clip(path: Path, count: int = 10) -> None:
    frames = make_clip("readme", 3).frames[:count]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def exported_before(bundle_tiny256_seed0: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The README exports what `bundle_tiny256_seed0` was exported with; copy it instead of exporting it a second time."""
    made: list[Path] = []

    def export_bundle(
        model: str, checkpoint: str, out: Path, *, image_size: int | None, targets: tuple[ExportTarget, ...], **_: object
    ) -> Path:
        assert (model, checkpoint, image_size, tuple(targets)) == ("sam2.1_hiera_tiny", "random:0", 256, (ExportTarget.ONNXRUNTIME,))
        made.append(Path(out))
        return Path(shutil.copytree(bundle_tiny256_seed0, out))

    monkeypatch.setattr(exporter, "export_bundle", export_bundle)
    return made


def _fastsam2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(arguments)
    assert done.value.code == 0, arguments


def test_readme(exported_before: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _write_clip(tmp_path / "clip.mp4")
    blocks = BLOCK.findall(README.read_text())
    assert [kind for kind, _ in blocks] == ["sh", "sh", "sh", "sh", "python", "sh"]
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, "README.md", "exec"), {})
            continue
        for line in text.strip().splitlines():
            program, *arguments = shlex.split(line, comments=True)
            assert program == "fastsam2"
            _fastsam2(arguments)
    assert exported_before == [Path("bundles/tiny256")]
    for name in ("masks/00009.png", "overlay.mp4", "run.json"):
        assert (tmp_path / "out/two" / name).is_file(), name
    assert (tmp_path / "out/pruned/masks/001/00009.png").is_file()
    assert (tmp_path / "out/pruned/masks.json").is_file()
    assert (tmp_path / "out/report/index.html").is_file()


def test_every_command_of_the_readme_exists() -> None:
    used = set(re.findall(r"^fastsam2 (\w+)", README.read_text(), re.MULTILINE))
    assert used >= {"export", "inspect", "run", "doctor"}
    for command in used:
        _fastsam2([command, "--help"])
