"""Muon for matrices, Adam for the rest, in one object whose state is a plain dictionary."""

import torch


def orthogonalize(g, steps=5):
    """Newton-Schulz iteration towards the nearest orthogonal matrix (Jordan et al. 2024); g is (batch, rows, columns)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return (x.mT if tall else x).float()


class Optimizer:
    def __init__(self, named, lr_muon, lr_adam, momentum=0.95, betas=(0.9, 0.99), decay=0.01):
        self.lr_muon, self.lr_adam, self.momentum, self.betas, self.decay = lr_muon, lr_adam, momentum, betas, decay
        self.groups, self.others = {}, []  # matrices of one shape are handled together
        for name, p in named:
            if p.ndim == 2 and "embed" not in name:
                self.groups.setdefault(tuple(p.shape), []).append((name, p))
            else:
                self.others.append((name, p))
        self.state = {name: torch.zeros_like(p) for g in self.groups.values() for name, p in g}
        self.state.update({name: [torch.zeros_like(p), torch.zeros_like(p)] for name, p in self.others})
        self.steps = 0

    @torch.no_grad()
    def step(self, grads, scale):
        """grads: name -> gradient; scale multiplies both learning rates."""
        self.steps += 1
        for shape, group in self.groups.items():
            updates = []
            for name, _ in group:
                m = self.state[name]
                m.lerp_(grads[name], 1 - self.momentum)
                updates.append(grads[name].lerp(m, self.momentum))
            lr = self.lr_muon * scale
            size = max(1.0, shape[0] / shape[1]) ** 0.5
            for (_, p), u in zip(group, orthogonalize(torch.stack(updates))):
                p.mul_(1 - lr * self.decay).add_(u, alpha=-lr * size)
        b1, b2 = self.betas
        for name, p in self.others:
            first, second = self.state[name]
            first.lerp_(grads[name], 1 - b1)
            second.lerp_(grads[name].square(), 1 - b2)
            update = (first / (1 - b1**self.steps)) / ((second / (1 - b2**self.steps)).sqrt() + 1e-9)
            p.add_(update, alpha=-self.lr_adam * scale)

    def state_dict(self):
        return {"state": self.state, "steps": self.steps}

    def load_state_dict(self, d):
        self.steps = d["steps"]
        for name, saved in d["state"].items():
            mine = self.state[name]
            for a, b in zip(mine, saved) if isinstance(mine, list) else [(mine, saved)]:
                a.copy_(b)
