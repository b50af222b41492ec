"""Draws the sample of CIFAR-10 that ships with the package.

    python tools/make_sample.py path/to/cifar10/train.parquet

The source is CIFAR-10 in the hub's image schema (``img``: struct of bytes and path, ``label``: int64). The encoded
images are copied byte for byte; nothing is decoded or compressed anew. The same seed draws the same images.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SOURCE = (
    "CIFAR-10 training images, A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, "
    "technical report, University of Toronto, 2009; JPEG-compressed copies (32 x 32, quality 75)."
)
SAMPLES = Path(__file__).resolve().parents[1] / "src" / "crossfeed" / "samples"


def draw(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Row numbers of ``count`` images, as many of each label, in shuffled order."""
    classes = np.unique(labels)
    each, rest = divmod(count, len(classes))
    if rest or each == 0:
        raise SystemExit(f"--count {count}: need a positive multiple of the {len(classes)} classes")
    rng = np.random.default_rng(seed)
    parts = []
    for label in classes:
        rows = np.flatnonzero(labels == label)
        if len(rows) < each:
            raise SystemExit(f"--count {count}: label {label} has {len(rows)} images, need {each}")
        parts.append(rng.choice(rows, each, replace=False))
    return rng.permutation(np.concatenate(parts))


def encode(table: pa.Table) -> bytes:
    """The table as one Parquet file; one row group, so that zstd shares the JPEG headers between images."""
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        compression_level=19,
        use_dictionary=False,
        write_statistics=False,
        row_group_size=len(table),
        data_page_size=1 << 30,
    )
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="CIFAR-10 training images as Parquet")
    parser.add_argument("--out", type=Path, default=SAMPLES / "cifar10.parquet")
    parser.add_argument("--count", type=int, default=2000, help="images, a multiple of the number of classes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-bytes", type=int, default=2_000_000)
    args = parser.parse_args()

    table = pq.read_table(args.source, columns=["img", "label"])
    labels = table["label"].to_numpy()
    sample = table.take(pa.array(draw(labels, args.count, args.seed)))
    drawn = f"{args.count} images, as many of each class, by tools/make_sample.py with seed {args.seed}"
    metadata = {"source": SOURCE, "drawn": drawn, "num_source_rows": str(len(table))}
    if huggingface := (table.schema.metadata or {}).get(b"huggingface"):
        metadata["huggingface"] = huggingface.decode()  # holds the names of the classes
    data = encode(sample.replace_schema_metadata(metadata))
    fits = int(args.count * args.max_bytes / len(data))
    print(f"{args.count} images take {len(data):,} bytes; about {fits:,} would fit into {args.max_bytes:,}")
    if len(data) > args.max_bytes:
        raise SystemExit(f"{len(data):,} bytes exceed --max-bytes {args.max_bytes:,}; draw fewer images")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_bytes(data)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
