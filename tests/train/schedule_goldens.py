"""Learning rates of PyTorch's own schedulers, as a table for test_train.c.

usage: python schedule_goldens.py > schedule_goldens.h
LinearLR from lr/warmup over warmup steps, then CosineAnnealingLR or LinearLR to lr_end, joined by SequentialLR."""
import sys

import torch

ROWS = [  # decay, lr, lr_end, warmup, steps
    ("COSINE", 1e-3, 1e-5, 10, 50),
    ("COSINE", 3e-4, 0.0, 1, 7),
    ("COSINE", 0.5, 0.05, 0, 33),
    ("LINEAR", 1e-2, 1e-3, 5, 20),
    ("LINEAR", 6e-5, 0.0, 0, 11),
    ("CONSTANT", 2e-3, 2e-4, 4, 12),
]


def rates(decay, lr, lr_end, warmup, steps):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
    rest = steps - warmup
    if decay == "COSINE":
        after = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rest, lr_end)
    elif decay == "LINEAR":
        after = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, lr_end / lr if lr_end else 1e-30, rest)
    else:
        after = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, rest)
    scheduler = after
    if warmup > 0:
        rise = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0 / warmup, 1.0, max(warmup - 1, 1))
        scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, after], [warmup])
    out = []
    for _ in range(steps):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return out


print("/* Made by schedule_goldens.py with PyTorch %s. */" % torch.__version__.split("+")[0])
print("static const struct {\n    enum lr_decay decay;\n    double lr, lr_end;\n    int64_t warmup, steps;\n    double rates[%d];" % max(r[4] for r in ROWS))
print("} schedule_goldens[] = {")
import warnings

warnings.simplefilter("ignore")
for row in ROWS:
    values = ", ".join("%.12g" % v for v in rates(*row))
    print("    {LR_%s, %g, %g, %d, %d, {%s}}," % (*row, values))
print("};")
sys.stdout.flush()
