import subprocess
import sys

_PRODUCTS = """
from trifocal.memory import few_primitives
few_primitives()
import torch
from torch.nn.functional import linear

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

torch.set_num_threads(1)
weights = [torch.ones(*shape, dtype=torch.bfloat16) for shape in ((1152, 384), (384, 384), (2048, 384))]
inputs = torch.ones(600, 384, dtype=torch.bfloat16)
linear(inputs, weights[0])
before = resident()
with torch.inference_mode():
    for rows in range(17, 600, 2):
        for weight in weights:
            linear(inputs[:rows], weight)
print(resident() - before)
"""


def test_products_of_many_lengths_do_not_fill_memory():
    done = subprocess.run([sys.executable, "-c", _PRODUCTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150 << 20
