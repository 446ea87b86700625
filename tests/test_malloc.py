import os
import subprocess
import sys

_PRODUCTS = """
from trifocal.malloc import few_primitives
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

_SMALL_OBJECTS = """
import os
from trifocal.malloc import give_back, system_allocator
system_allocator()

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

before = resident()
many = [[number] for number in range(1_000_000)]
kept = many[::5000]
del many
give_back()
print(os.getpid(), resident() - before)
"""


def test_products_of_many_lengths_do_not_fill_memory():
    done = subprocess.run([sys.executable, "-c", _PRODUCTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150 << 20


def test_small_objects_leave_no_holes_and_the_process_stays_the_same():
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONMALLOC"}
    process = subprocess.Popen(
        [sys.executable, "-c", _SMALL_OBJECTS], stdout=subprocess.PIPE, text=True, env=environment
    )
    answer, _ = process.communicate()
    pid, left = map(int, answer.split())
    assert pid == process.pid
    assert left < 20 << 20
