"""`trifocal quantize`: from a plain checkpoint to one in AWQ.

Two passes over a checkpoint, neither of which holds it whole (`awq`). The first runs calibration samples through the
model, layer by layer in float32 (`inputs`, `layer`), and looks for scales under which rounding does the least harm
(`scales`, `clip`). The second reads tensor by tensor, changes and rounds what is to be changed (`change`), and writes
(`shards`, `folder`).

The method is that of AWQ (Lin et al., 2023, https://arxiv.org/abs/2306.00978): multiplying an input channel of a
weight by a scale makes its rounding finer, dividing whatever produces the channel by the same scale keeps the product,
and how far that pays is tried out on the activations.
"""
