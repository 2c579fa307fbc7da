"""The Llama architecture in plain PyTorch, with the parameter names and the arithmetic of transformers' LlamaForCausalLM."""

import torch
import torch.nn.functional as F
from torch import nn


class Norm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):  # in float32, whatever x is
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return (y * self.weight).to(x.dtype)


def rope_tables(positions, head_dim, theta):
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = positions.float()[:, None] * frequencies
    return torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def attend(q, k, v, mask):
    b, h, n, d = q.shape
    if mask is None and n <= 512 and q.requires_grad:  # on the CPU faster than the fused kernel, forward and backward
        bias = torch.full((1, n, n), float("-inf"), dtype=q.dtype).triu(1).expand(b * h, -1, -1)
        scores = torch.baddbmm(bias, q.flatten(0, 1) * d**-0.5, k.flatten(0, 1).mT)
        return torch.bmm(scores.softmax(-1), v.flatten(0, 1)).view(b, h, n, d)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)


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
        y = attend(q, k, v, mask)
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

    Coordinate 0 of every embedding is a constant, from which two heads of layer 0 make queries and keys that depend on the
    distance alone (RoPE turns them): one looks one token back, one two, and each writes what it saw, rotated, into the
    residual. In layer 1 the heads of one KV head compare the current token with what stood before (one back, then two back)
    each earlier token, in the slow frequencies of RoPE, and copy the token found: induction heads (Olsson et al. 2022), which
    otherwise take most of a short run to form.
    """
    c, first, second = model.c, model.model.layers[0].self_attn, model.model.layers[1].self_attn
    hidden, d, half = c["hidden_size"], c["head_dim"], c["head_dim"] // 2
    group = c["num_attention_heads"] // c["num_key_value_heads"]
    unit = hidden**-0.5
    model.model.embed_tokens.weight[:, 0] = 8 * unit
    theta = c["rope_theta"] ** (-torch.arange(half, dtype=torch.float32) / half)
    fast = torch.arange(half) < half * 9 // 32
    slow = torch.arange(half) >= half * 14 // 32

    read = orthonormal(d, hidden)  # what the looking-back heads see of a token
    read[:, 0] = 0
    first.k_proj.weight[:d] = 0
    first.k_proj.weight[:half][fast, 0] = 1.0
    first.v_proj.weight[:d] = read
    match = torch.zeros(d, d)
    both = torch.cat([slow, slow])
    match[both] = orthonormal(int(both.sum()), d)
    copy = orthonormal(d, hidden)
    copy[:, 0] = 0
    for back in (1, 2):
        head = slice((back - 1) * d, back * d)
        q = torch.zeros(d, hidden)
        q[:half, 0] = torch.where(fast, (theta * back).cos(), 0)
        q[half:, 0] = torch.where(fast, -(theta * back).sin(), 0)
        first.q_proj.weight[head] = q
        write = orthonormal(hidden, d)
        write[0] = 0
        first.o_proj.weight[:, head] = 0.1 * write
        kv = slice((back - 1) * d, back * d)
        second.k_proj.weight[kv] = 1.6 * match @ write.T
        second.v_proj.weight[kv] = copy
        for h in range((back - 1) * group, back * group):
            second.q_proj.weight[h * d : (h + 1) * d] = 1.6 * match @ read
        h = (back - 1) * group
        second.o_proj.weight[:, h * d : (h + 1) * d] = 0.05 * copy.T


class Llama(nn.Module):
    """Tied embeddings. forward(ids) gives logits; forward(ids, targets, weights) gives (weighted sum of losses, sum of losses)."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        self.model = Stack(c)
        cos, sin = rope_tables(torch.arange(c["max_position_embeddings"]), c["head_dim"], c["rope_theta"])
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

    def hidden(self, ids, mask=None):
        x = self.model.embed_tokens(ids)
        if torch.is_autocast_enabled("cpu"):
            x = x.bfloat16()
        cos, sin = self.cos[: ids.shape[1]].to(x.dtype), self.sin[: ids.shape[1]].to(x.dtype)
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask)
        return self.model.norm(x)

    def forward(self, ids, targets=None, weights=None, mask=None):
        x = self.hidden(ids, mask)
        logits = F.linear(x, self.model.embed_tokens.weight)
        if targets is None:
            return logits
        losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        return (losses * weights.flatten()).sum(), losses.detach().sum()
