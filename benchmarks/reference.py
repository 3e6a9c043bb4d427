"""Keeps of a workbook's results what README shows, small enough for git: `make reference`.

    python -m benchmarks.reference build/reference results/reference-cpu

Each study's summary, verdict and PNG figures, these in 128 colours with their alt text, and the quickstart's runs. What
the target held of these studies goes. The exit status is 1 where the target then takes more than LIMIT_MB.
"""

import shutil
import sys
from pathlib import Path

from PIL import Image, PngImagePlugin

LIMIT_MB = 3.0


def keep(source: Path, target: Path) -> float:
    """Copies the studies in `source`; how many MB `target` holds then."""
    for study in sorted(path.parent for path in source.glob("*/summary.csv")):
        there = target / study.name
        shutil.rmtree(there, ignore_errors=True)
        (there / "figures").mkdir(parents=True)
        for path in [*study.glob("*.csv"), *study.glob("verdict.json")]:
            shutil.copy(path, there)
        for path in (study / "figures").glob("*.png"):
            with Image.open(path) as image:
                text = PngImagePlugin.PngInfo()
                for name, words in image.info.items():
                    if name in ("Title", "Description"):
                        text.add_itxt(name, words)
                small = image.convert("RGB").quantize(
                    128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
                )
                small.save(there / "figures" / path.name, pnginfo=text, optimize=True)
        for run in study.glob("*/run.json") if study.name == "quickstart" else ():
            shutil.copytree(run.parent, there / run.parent.name)
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) / 1e6


if __name__ == "__main__":
    held_mb = keep(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"{sys.argv[2]} holds {held_mb:.2f} MB")
    sys.exit(held_mb > LIMIT_MB)
