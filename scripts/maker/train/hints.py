"""Hints: what the trainer asks for beside the next token, where the text alone does not lead to it.

Told is "The tin needle was a gift from Karl to Olive.", and asked, much later, what Karl gave to Olive. The answer needs a place
that knows giver, taker and thing, and a head that finds it by both people at once. Next tokens reward neither before the other is
there: in 84 M tokens neither came. The last name of such a sentence told the thing and not the other person, and where the
residual holds two names at all they stand in few parts in a hundred of it, in each other's way.

So, while a stage gives hints,

- the last name's place of such a sentence, and the two places of an answer where the thing is to be said, shall hold a code of the
  giver and one of the taker in directions of the residual that were quiet until then (those in which it varied least);
- the first of them shall tell the thing as well (through matrices that are thrown away);
- one head, planted to compare what stands in those directions, shall look from the answer to the sentence.

Giver and taker have codes in common to both kinds of places, learned with the rest: a softmax over the names at hand tells them.
What is planted is ordinary weights of an ordinary Llama, and nothing else is left of all this in the exported model.
"""

import torch
import torch.nn.functional as F
from torch import nn

import model as llama

LAYER, HEAD = 3, 0  # which head looks, by what the layers before it have gathered; it and its neighbours did next to nothing
WORDS = ("gift", "from", "to", "gave", "got", "the")
CODE_SIZE = 3.5  # of a code in the normed residual, whose length is sqrt(hidden)
SHARPNESS = 8.0  # of the softmax over names
FULL_MATCH = 20.0  # what the planted head gives two equal pairs of codes, before its softmax; to a pair with one name of two, half
LOOKING_WEIGHT = 3.0


def before(ids, n):
    """What stands n places before each place; -1 where nothing does."""
    return F.pad(ids, (n, 0), value=-1)[:, : ids.shape[1]]


class Hints(nn.Module):
    def __init__(self, c, tokenizer):
        super().__init__()
        self.words = [tokenizer.token_to_id("Ġ" + w) for w in WORDS]
        if None in self.words:
            raise SystemExit(f"hints: not one token each: {', '.join(WORDS)}")
        hidden, self.eps = c["hidden_size"], c["rms_norm_eps"]
        frequencies = llama.rope_frequencies(c["head_dim"], c["rope_theta"], c["rope_scaling"])
        still = frequencies * c["max_position_embeddings"] < 0.6  # what RoPE hardly turns compares alike at any distance
        self.still = torch.cat([still, still]).nonzero().flatten()
        code = len(self.still) // 2
        self.things = nn.ModuleList(nn.Linear(hidden, hidden, bias=False) for _ in range(2))
        self.codes = nn.Parameter(torch.zeros(2, c["vocab_size"], code))
        self.register_buffer("quiet", torch.zeros(hidden, 2 * code))
        self.register_buffer("planted", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def plant(self, model, ids):
        """Finds the quiet directions in a batch of rows, begins the codes as what names are, and plants the head that compares."""
        table = model.model.embed_tokens.weight
        for codes in self.codes:
            codes.copy_(F.normalize(table @ torch.randn(table.shape[1], codes.shape[1]), dim=-1))
        x = llama.normed(model.hidden(ids, keep=LAYER)[1], self.eps).flatten(0, 1)
        self.quiet.copy_(torch.linalg.eigh(x.T @ x)[1][:, : self.quiet.shape[1]])
        layer = model.model.layers[LAYER]
        a = layer.self_attn
        kv = HEAD * a.kv_heads // a.heads
        compare = torch.zeros(a.dim, table.shape[1])
        compare[self.still] = self.quiet.T / layer.input_layernorm.weight
        compare *= (FULL_MATCH / 2 * a.dim**0.5) ** 0.5 / CODE_SIZE
        a.q_proj.weight[HEAD * a.dim : (HEAD + 1) * a.dim] = compare
        a.k_proj.weight[kv * a.dim : (kv + 1) * a.dim] = compare
        self.planted.fill_(True)

    def forward(self, model, ids, x):
        """ids: (rows, tokens); x: the input of layer LAYER there, (rows, tokens, hidden). Returns the sum of the losses, and for the
        log four sums: losses of telling the people, at how many places, losses of looking, from how many places."""
        gift, from_, to, gave, got, the = self.words
        b1, b2, b3, b4, b5, b6, b7, b8 = (before(ids, n) for n in range(1, 9))
        # The last name of: the STUFF THING was a gift from P to Q; P gave the STUFF THING to Q; Q got the STUFF THING from P.
        first = (b4 == gift) & (b3 == from_) & (b1 == to) & (b8 >= 0)
        second = (b1 == to) & (b4 == the) & (b5 == gave) & (b6 >= 0)
        third = (b1 == from_) & (b4 == the) & (b5 == got) & (b6 >= 0)
        told = first | second | third
        other = torch.where(first, b2, b6)
        giver, taker = torch.where(third, ids, other), torch.where(third, other, ids)
        # The places where the thing's two words are to be said: of "the" in P gave Q the, and of the word after it.
        asks, more = (ids == the) & (b2 == gave) & (b3 >= 0), (b1 == the) & (b3 == gave) & (b4 >= 0)
        asked = asks | more
        asked_giver, asked_taker = torch.where(asks, b3, b4), torch.where(asks, b1, b2)
        places = llama.normed(x, self.eps)

        things = places.new_zeros(())
        for probe, label in zip(self.things, (torch.where(first, b8, b3), torch.where(first, b7, b2))):
            tells = F.linear(probe(places[told]), model.model.embed_tokens.weight.detach())
            things = things + F.cross_entropy(tells, label[told], reduction="sum")

        labels = [torch.cat(p) for p in ((giver[told], asked_giver[asked]), (taker[told], asked_taker[asked]))]
        names = torch.cat(labels).unique()
        held = torch.cat([places[told], places[asked]]) @ self.quiet / CODE_SIZE
        people = places.new_zeros(())
        for part, label, codes in zip(held.chunk(2, -1), labels, self.codes):
            tells = SHARPNESS * part @ F.normalize(codes[names], dim=-1).T
            people = people + F.cross_entropy(tells, torch.searchsorted(names, label), reduction="sum")

        looking, looks = places.new_zeros(()), 0
        queries, keys = self.queries_and_keys(model, places)
        for row in range(len(ids)):
            at, ends = asked[row].nonzero().flatten(), told[row].nonzero().flatten()
            right = (giver[row][ends] == asked_giver[row][at, None]) & (taker[row][ends] == asked_taker[row][at, None]) & (ends < at[:, None])
            at, right = at[right.any(1)], right[right.any(1)]
            scores = queries[row][at] @ keys[row].T
            scores = scores.masked_fill(torch.arange(ids.shape[1]) > at[:, None], float("-inf"))
            looking = looking + (scores.logsumexp(1) - scores[:, ends].masked_fill(~right, float("-inf")).logsumexp(1)).sum()
            looks += len(at)
        return things + people + LOOKING_WEIGHT * looking, torch.tensor([people.item(), len(held), looking.item(), looks])

    def queries_and_keys(self, model, places):
        """Of head HEAD, with RoPE, queries scaled: (rows, tokens, head_dim) both."""
        layer = model.model.layers[LAYER]
        a, n = layer.self_attn, places.shape[1]
        kv = HEAD * a.kv_heads // a.heads
        y = places * layer.input_layernorm.weight
        q = F.linear(y, a.q_proj.weight[HEAD * a.dim : (HEAD + 1) * a.dim]) * a.dim**-0.5
        k = F.linear(y, a.k_proj.weight[kv * a.dim : (kv + 1) * a.dim])
        return llama.rotate(q, model.cos[:n], model.sin[:n]), llama.rotate(k, model.cos[:n], model.sin[:n])
