"""The Llama architecture in plain PyTorch, with the parameter names and the arithmetic of transformers' LlamaForCausalLM."""

import math

import torch
import torch.nn.functional as F
from torch import nn


def normed(x, eps):
    """x at a root mean square of 1, in float32."""
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


class Norm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return (normed(x, self.eps) * self.weight).to(x.dtype)


def slowed(frequencies, scaling):
    """Llama 3's scaling: what turns once in more than original / low_freq_factor positions turns `factor` times slower, what turns
    once in fewer than original / high_freq_factor as before, and between them part of each."""
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (share + (1 - share) / scaling["factor"])


def rope_frequencies(head_dim, theta, scaling=None):
    """Radians a position, of each pair of a head's dimensions."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    return slowed(frequencies, scaling) if scaling else frequencies


def rope_tables(positions, head_dim, theta, scaling=None):
    angles = positions.float()[:, None] * rope_frequencies(head_dim, theta, scaling)
    return torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv_heads, self.dim = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        self.q_proj = nn.Linear(c["hidden_size"], self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(c["hidden_size"], self.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(c["hidden_size"], self.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, c["hidden_size"], bias=False)

    def forward(self, x, cos, sin, mask=None):
        b, n, _ = x.shape
        q = self.q_proj(x).view(b, n, self.heads, self.dim).transpose(1, 2)
        k = self.k_proj(x).view(b, n, self.kv_heads, self.dim).transpose(1, 2)
        v = self.v_proj(x).view(b, n, self.kv_heads, self.dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        groups = self.heads // self.kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(y.transpose(1, 2).reshape(b, n, -1))


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.up_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.down_proj = nn.Linear(c["intermediate_size"], c["hidden_size"], bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.self_attn, self.mlp = Attention(c), Mlp(c)
        self.input_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.post_attention_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])

    def forward(self, x, cos, sin, mask=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Stack(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = Norm(c["hidden_size"], c["rms_norm_eps"])


def orthonormal(rows, columns):
    q, _ = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns)))
    return q if rows >= columns else q.T


@torch.no_grad()
def plant_induction(model):
    """Gives the first two layers a start at copying from the context; everything stays an ordinary, trainable weight.

    The coordinates of the residual begin as a constant (0), the token, and four small sketches. The constant gives the heads of
    layer 0 queries and keys that depend on the distance alone (RoPE turns them): they look one to four tokens back and each
    writes a sketch of the token it sees. In layer 1 a head of each KV head compares the current token and those before it with
    the sketches of what stood before each earlier token (two or three of them, in the slow frequencies of RoPE) and copies the
    token found: induction heads (Olsson et al. 2022) that match more than one token, which otherwise take long to form.
    """
    c, first, second = model.c, model.model.layers[0].self_attn, model.model.layers[1].self_attn
    hidden, d, half = c["hidden_size"], c["head_dim"], c["head_dim"] // 2
    heads, group = c["num_attention_heads"], c["num_attention_heads"] // c["num_key_value_heads"]
    size = hidden // 2 // heads  # of a sketch
    token = slice(1, hidden - heads * size)
    width = token.stop - 1
    sketches = [slice(token.stop + h * size, token.stop + (h + 1) * size) for h in range(heads)]
    table = model.model.embed_tokens.weight
    table[:, token] *= (hidden / width) ** 0.5
    table[:, token.stop :] = 0
    table[:, 0] = 8 * hidden**-0.5

    theta = rope_frequencies(d, c["rope_theta"])
    fast = theta > 0.07
    slow = torch.cat([theta < 0.0011] * 2)
    read = torch.zeros(size, hidden)
    read[:, token] = orthonormal(size, width)
    for h in range(heads):
        k = torch.zeros(d, hidden)
        k[:half, 0] = fast.float()
        q = torch.zeros(d, hidden)
        q[:half, 0] = torch.where(fast, (theta * (h + 1)).cos(), 0)
        q[half:, 0] = torch.where(fast, -(theta * (h + 1)).sin(), 0)
        kv = h // group * d
        first.k_proj.weight[kv : kv + d] = k
        first.q_proj.weight[h * d : (h + 1) * d] = q
        first.v_proj.weight[kv : kv + size] = read
        first.o_proj.weight[:, h * d : (h + 1) * d] = 0
        first.o_proj.weight[sketches[h], h * d : h * d + size] = 0.12 * torch.eye(size)

    now = 1.4 * read
    before = torch.eye(hidden)
    for i in range(c["num_key_value_heads"]):
        matched = min(2 + i, heads)
        match = torch.zeros(d, matched * size)
        match[slow] = orthonormal(int(slow.sum()), matched * size)
        keys = torch.cat([before[s] for s in sketches[:matched]])
        queries = torch.cat([now] + [before[s] for s in sketches[: matched - 1]])
        copy = torch.zeros(d, hidden)
        copy[:, token] = orthonormal(d, width)
        h = i * group
        second.k_proj.weight[i * d : (i + 1) * d] = 1.6 * match @ keys
        second.q_proj.weight[h * d : (h + 1) * d] = 1.6 * match @ queries
        second.v_proj.weight[i * d : (i + 1) * d] = copy
        second.o_proj.weight[:, h * d : (h + 1) * d] = 0.06 * copy.T


class Llama(nn.Module):
    """Tied embeddings. forward(ids) gives logits; forward(ids, targets, weights) gives (weighted sum of losses, sum of losses, what
    was kept). keep: the layer whose input is kept."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        self.model = Stack(c)
        cos, sin = rope_tables(torch.arange(c["max_position_embeddings"]), c["head_dim"], c["rope_theta"], c.get("rope_scaling"))
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, p in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(p)
            elif p.ndim == 2 and "embed" not in name:
                nn.init.normal_(p, std=p.shape[1] ** -0.5)
            elif p.ndim == 2:
                nn.init.normal_(p, std=c["hidden_size"] ** -0.5)
        plant_induction(self)

    def hidden(self, ids, mask=None, keep=None):
        """What the logits are made of, and the input of layer `keep`."""
        x = self.model.embed_tokens(ids)
        if torch.is_autocast_enabled("cpu"):
            x = x.bfloat16()
        cos, sin = self.cos[: ids.shape[1]].to(x.dtype), self.sin[: ids.shape[1]].to(x.dtype)
        kept = None
        for i, layer in enumerate(self.model.layers):
            if i == keep:
                kept = x
            x = layer(x, cos, sin, mask)
        return self.model.norm(x), kept

    def forward(self, ids, targets=None, weights=None, mask=None, keep=None):
        x, kept = self.hidden(ids, mask, keep)
        logits = F.linear(x, self.model.embed_tokens.weight)
        if targets is None:
            return logits
        losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        return (losses * weights.flatten()).sum(), losses.detach().sum(), kept
