"""Mutants that no test can notice, because nothing that matters changes: found by reading what survived."""

# (path, what its line holds, old, new): why
EQUIVALENT = {
    ("trifocal/engine/block_manager.py", "_DIGEST_BYTES = 16", "16", "17"): "a longer digest tells as much apart",
    ("trifocal/engine/block_manager.py", "item.span.end > start", ">", ">="): (
        "an item that ends where the block begins is in the hash of the block before, which is a part of this one's"
    ),
    ("trifocal/engine/plan_builder.py", "max(0, item.span.offset - start)", "0, item.span.offset - start",
     "item.span.offset - start, 0"): "the larger of two numbers",
    ("trifocal/kernels/blocks.py", "blocks.transpose(1, 2)", "1, 2", "2, 1"): "the same two axes",
    ("trifocal/attention/vision.py", ".transpose(1, 2)", "1, 2", "2, 1"): "the same two axes",
    ("trifocal/kernels/cpu/build.py", "timeout=600", "600", "601"): "a compiler does not take so long",
    ("trifocal/kernels/cpu/src/int4.cpp", "Op::Sum sums[2][", "2", "3"): "a larger place is as good",
}  # fmt: skip
# Lines that only make things faster.
HINTS = ("_mm_prefetch(",)


def reason(path: str, line: str, old: str, new: str) -> str | None:
    """Why this mutant cannot be noticed, or None."""
    if any(each in old for each in HINTS):
        return "only a hint to the processor"
    for (where, part, before, after), why in EQUIVALENT.items():
        if (where, before, after) == (path, old, new) and part in line:
            return why
    return None
