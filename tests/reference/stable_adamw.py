"""StableAdamW with fully decoupled decay, slow and in full (Wortsman et al., arXiv 2304.13013, algorithm 2)."""

import torch


class StableAdamW:
    """One tensor at a time, out of place."""

    def __init__(self, weights, weight_decay, betas=(0.9, 0.98), eps=1e-6):
        self.weights, self.weight_decay, self.betas, self.eps, self.steps = weights, weight_decay, betas, eps, 0
        self.first, self.second = ([torch.zeros_like(w) for w in weights] for _ in range(2))

    def step(self, gradients, lr, peak_lr):
        self.steps += 1
        hats = [(beta**self.steps - beta) / (beta**self.steps - 1) for beta in self.betas]  # bias-corrected averages
        for i, g in enumerate(gradients):
            self.first[i] = torch.lerp(self.first[i], g, 1 - hats[0])
            self.second[i] = (self.second[i] * hats[1]).addcmul(g, g, value=1 - hats[1])
            rms = (g.square() / self.second[i].clamp(min=self.eps**2)).mean().sqrt().item()
            rate = lr / max(1, rms)  # the clipping of the update
            shrunk = self.weights[i] * (1 - rate / peak_lr * self.weight_decay)
            self.weights[i] = shrunk.addcdiv(self.first[i], self.second[i].sqrt() + self.eps, value=-rate)
