"""Keeps the part of a workbook's results that README shows, small enough for git: `make reference`.

    python -m benchmarks.reference build/reference results/reference-cpu

Copies each study's summary, verdict and PNG figures (in 128 colours, with their alt text), and the
quickstart's runs. It replaces all studies in the target. The exit status is 1 if the target then
exceeds LIMIT_MB.
"""

import shutil
import sys
from pathlib import Path

from PIL import Image, PngImagePlugin

LIMIT_MB = 3.0


def keep(source: Path, target: Path) -> float:
    """Copies the studies in `source`, and returns the size of `target` in MB.

    Studies of `target` that `source` does not have are removed: they are of an older set.
    """
    for summary in target.glob("*/summary.csv"):
        shutil.rmtree(summary.parent)
    for summary in sorted(source.glob("*/summary.csv")):
        study = summary.parent
        kept = target / study.name
        shutil.rmtree(kept, ignore_errors=True)  # pictures alone, of an older set
        (kept / "figures").mkdir(parents=True)
        for path in [*study.glob("*.csv"), *study.glob("verdict.json")]:
            shutil.copy(path, kept)
        for path in study.glob("figures/*.png"):
            _save_small(path, kept / "figures" / path.name)
        if study.name == "quickstart":
            for record in study.glob("*/run.json"):
                run = record.parent
                shutil.copytree(run, kept / run.name)
    sizes = [path.stat().st_size for path in target.rglob("*") if path.is_file()]
    return sum(sizes) / 1e6


def _save_small(source: Path, target: Path) -> None:
    """Saves a PNG in 128 colours, with its title and alt text."""
    with Image.open(source) as image:
        text = PngImagePlugin.PngInfo()
        for name in ("Title", "Description"):
            if name in image.info:
                text.add_itxt(name, image.info[name])
        # The colours that cover the most keep thin lines, and dithering would make the file larger.
        method = Image.Quantize.MAXCOVERAGE
        small = image.convert("RGB").quantize(128, method, dither=Image.Dither.NONE)
        small.save(target, pnginfo=text, optimize=True)


if __name__ == "__main__":
    size_mb = keep(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"{sys.argv[2]} holds {size_mb:.2f} MB")
    sys.exit(size_mb > LIMIT_MB)
