"""Writes tests/ops/goldens.h: inputs and PyTorch's float64 results of single operations, as exact hexadecimal doubles.

    build/oracles/bin/python tests/oracles/make_ops_goldens.py > tests/ops/goldens.h
"""
import torch
import torch.nn.functional as F

torch.manual_seed(5)
torch.set_default_dtype(torch.float64)


def emit(name, tensor):
    values = ", ".join(float(v).hex() for v in tensor.detach().reshape(-1))
    print(f"static const double {name}[] = {{{values}}};")


def normal(*shape, std=1.0, shift=0.0):
    """Values that a float holds exactly, so that every table can start from the same numbers."""
    return (torch.randn(*shape) * std + shift).float().double()


def gradients(output, *inputs):
    dy = normal(*output.shape)
    return (dy, *torch.autograd.grad(output, inputs, dy))


def layernorm(rows=3, width=7):
    x, w, b = normal(rows, width, std=2, shift=1), normal(width), normal(width)
    for t in (x, w, b):
        t.requires_grad_()
    y = F.layer_norm(x, (width,), w, b, 1e-5)
    dy, dx, dw, db = gradients(y, x, w, b)
    for name, t in dict(x=x, w=w, b=b, y=y, dy=dy, dx=dx, dw=dw, db=db).items():
        emit(f"layernorm_{name}", t)


def rmsnorm(rows=3, width=7):
    x, w = normal(rows, width, std=2, shift=1).requires_grad_(), normal(width).requires_grad_()
    y = F.rms_norm(x, (width,), w, 1e-5)
    dy, dx, dw = gradients(y, x, w)
    for name, t in dict(x=x, w=w, y=y, dy=dy, dx=dx, dw=dw).items():
        emit(f"rmsnorm_{name}", t)


def gelu(rows=2, width=9):
    x = (normal(rows, width, std=3)).requires_grad_()
    y = F.gelu(x, approximate="tanh")
    dy, dx = gradients(y, x)
    for name, t in dict(x=x, y=y, dy=dy, dx=dx).items():
        emit(f"gelu_{name}", t)


def swiglu(rows=2, width=5):
    x = normal(rows, 2 * width, std=2).requires_grad_()
    y = F.silu(x[:, :width]) * x[:, width:]
    dy, dx = gradients(y, x)
    for name, t in dict(x=x, y=y, dy=dy, dx=dx).items():
        emit(f"swiglu_{name}", t)


def rope(batch=1, length=3, heads=2, width=6):
    x = normal(batch, length, heads, width)
    positions = torch.tensor([[0, 5, 131]])
    frequencies = 1e4 ** (-2.0 * torch.arange(width // 2) / width)
    angle = (positions[..., None] * frequencies)[:, :, None, :]
    cosine, sine = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
    half = width // 2
    y = x * cosine + torch.cat([-x[..., half:], x[..., :half]], -1) * sine
    emit("rope_x", x)
    emit("rope_frequencies", frequencies)
    emit("rope_y", y)


def losses(rows=4, vocabulary=11):
    student, teacher = normal(rows, vocabulary, std=2).requires_grad_(), normal(rows, vocabulary, std=2)
    targets = torch.tensor([3, 0, -1, 10])
    counts = (targets >= 0).double()
    temperature, kl_weight, ce_weight, scale = 2.5, 0.75, 0.5, 0.125
    p, log_p = (teacher / temperature).softmax(-1), (teacher / temperature).log_softmax(-1)
    kl = (p * (log_p - (student / temperature).log_softmax(-1))).sum(-1) * temperature**2 * counts
    ce = F.cross_entropy(student, targets, ignore_index=-1, reduction="none")
    teacher_ce = F.cross_entropy(teacher, targets, ignore_index=-1, reduction="none")
    log_q = student.log_softmax(-1)
    reverse = (log_q.exp() * (log_q - teacher.log_softmax(-1))).sum(-1) * counts
    entropy = -(log_q.exp() * log_q).sum(-1) * counts
    agree = (student.argmax(-1) == teacher.argmax(-1)).double() * counts
    total = (scale * (kl_weight * kl + ce_weight * ce)).sum()
    (gradient,) = torch.autograd.grad(total, student)
    outputs = dict(student=student, teacher=teacher, targets=targets, kl=kl, ce=ce, teacher_ce=teacher_ce,
                   reverse_kl=reverse, entropy=entropy, agree=agree, gradient=gradient)
    for name, t in outputs.items():
        emit(f"loss_{name}", t)


def adamw(n=6, steps=3):
    x = normal(n).requires_grad_()
    start = x.detach().clone()
    optimizer = torch.optim.AdamW([x], lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    gradients_of_steps = normal(steps, n)
    for step in range(steps):
        x.grad = gradients_of_steps[step].clone()
        optimizer.step()
    emit("adamw_x", start)
    emit("adamw_grads", gradients_of_steps)
    emit("adamw_y", x)


print(f"/* Made by tests/oracles/make_ops_goldens.py with PyTorch {torch.__version__.split('+')[0]}; do not edit. */")
print("/* clang-format off */")
for make in (layernorm, rmsnorm, gelu, swiglu, rope, losses, adamw):
    make()
