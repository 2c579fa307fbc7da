"""Every number that decides what the default model becomes."""

SEED = 20240521

# Special tokens; their ids are their places here.
SPECIAL = ["<|begin|>", "<|end|>"]
BEGIN, END = 0, 1

VOCAB = 2560
LEXICON_TIMES = 600  # how often the tokenizer's text repeats the world's lexicon
# The pre-tokenizer of Qwen 2: words with their leading space, digits one by one.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Llama, with heads wider than hidden / heads.
MODEL = dict(
    vocab_size=VOCAB,
    hidden_size=192,
    intermediate_size=512,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=2048,
    rope_theta=1000000.0,
    # What turns slowly compares tokens by what they are: slowed so much that it does so at any distance.
    rope_scaling=dict(rope_type="llama3", factor=32.0, low_freq_factor=0.5, high_freq_factor=2.0, original_max_position_embeddings=1024),
    rms_norm_eps=1e-5,
)

# The book that no token and no merge is learned from.
HELD_OUT_BOOK = "The Secret Garden"

# World seeds: the tokenizer's, then each stage's own range. Evaluation uses seeds from 1,000,000,000 on.
TOKENIZER_SEEDS = (500_000_000, 6000)
STAGE_SEEDS = 20_000_000

DENSE = ("density=95", "recall=65")

# How much the loss on an answer at the end counts; every other token counts 1.
ANSWER_WEIGHT = 3.0

# Documents of the kinds that are learned last; a stage may name its own.
FOCUS = ("kind=gift", "kind=moved", "kind=verse")

# Stages follow each other; share is of the tokens (or minutes), relative: here, millions of tokens of the run that made the
# default model. words: range of a document's words, so that a document fits a row. dense: share of the documents in which
# nearly everything said is a fact, and most of it recalled: there copying from the context is learned first. focus: share of
# the documents with only the kinds of FOCUS (or of `kinds`, where one named twice is drawn twice as often). asked: share of
# the documents that tell nearly every fact once and end with many questions, between so many as `questions` says. things: share
# of these in which, of gifts, only the thing is asked for. answers: instead of ANSWER_WEIGHT. hints: the weight of the losses of
# hints.py. prose: share of the rows that are prose alone; the space left in the others is filled with prose.
STAGES = [
    dict(name="short", context=256, share=8.16, batch=32, words=(30, 100), dense=0.6, focus=0.0, prose=0.12),
    dict(name="middle", context=512, share=8.08, batch=16, words=(60, 260), dense=0.5, focus=0.0, prose=0.12),
    dict(name="long", context=1024, share=7.28, batch=8, words=(100, 580), dense=0.4, focus=0.0, prose=0.12),
    dict(name="full", context=2048, share=6.98, batch=4, words=(100, 1300), dense=0.4, focus=0.4, prose=0.10),
    dict(name="asked", context=1024, share=8, batch=8, words=(120, 480), dense=0.4, focus=0.3, prose=0.08, asked=0.8, questions=(8, 22)),
    dict(name="far", context=2048, share=3.39, batch=4, words=(300, 1200), dense=0.4, focus=0.3, prose=0.08, asked=0.8, questions=(12, 45)),
    dict(name="sure", context=2048, share=12.61, batch=4, words=(300, 1200), dense=0.4, focus=0.3, prose=0.08, asked=0.8, questions=(12, 45), answers=8.0),
    dict(name="firm", context=2048, share=16, batch=4, words=(300, 1300), dense=0.4, focus=0.6, prose=0.06, asked=0.9,
        questions=(16, 48), answers=8.0, kinds=("kind=gift", "kind=gift", "kind=attribute", "kind=verse", "kind=moved")),
    # Few questions after long documents: what is asked for lies far back, as where the model is tried.
    dict(name="back", context=2048, share=14, batch=4, words=(600, 1400), dense=0.3, focus=0.6, prose=0.06, asked=0.9,
        questions=(10, 28), answers=8.0, kinds=("kind=gift", "kind=gift", "kind=moved", "kind=moved", "kind=attribute", "kind=verse")),
    # What one person gave to another, with hints: first in short documents, then as in the stage before.
    dict(name="hinted", context=2048, share=8, batch=4, words=(60, 300), dense=0.8, focus=0.8, prose=0.04, asked=0.95, hints=0.5,
        questions=(6, 20), things=0.6, answers=4.0, kinds=("kind=gift", "kind=gift", "kind=gift", "kind=moved", "kind=attribute")),
    dict(name="settled", context=2048, share=8, batch=4, words=(300, 1400), dense=0.4, focus=0.6, prose=0.06, asked=0.9, hints=0.5,
        questions=(12, 40), things=0.15, answers=8.0,
        kinds=("kind=gift", "kind=gift", "kind=gift", "kind=moved", "kind=attribute", "kind=verse")),
    # What moved, above all, after long documents: the two stages before have cost some of it.
    dict(name="again", context=2048, share=5, batch=4, words=(600, 1400), dense=0.3, focus=0.5, prose=0.06, asked=0.9, hints=0.5,
        questions=(10, 28), things=0.1, answers=8.0,
        kinds=("kind=gift", "kind=gift", "kind=moved", "kind=moved", "kind=moved", "kind=attribute", "kind=code")),
    # The thing's second word, which other things of its stuff contest.
    dict(name="things", context=2048, share=2.2, batch=4, words=(200, 1300), dense=0.5, focus=0.6, prose=0.04, asked=0.95, hints=0.5,
        questions=(12, 40), things=0.5, answers=8.0, kinds=("kind=gift", "kind=gift", "kind=gift", "kind=moved", "kind=attribute")),
]
TELLING_ONCE = ("recall=10",)
# Tokens of a word of a document's body and of a question with its answer, to tell how many words leave room for questions.
WORD_TOKENS, QUESTION_TOKENS = 1.3, 28

# Muon for the matrices of the layers, Adam for the embedding and the gains.
LR_MUON = 0.02
LR_ADAM = 0.004
WARMUP_STEPS = 60
# What both are multiplied with, at so much of the stages' shares, linear between: cooled down for the first model at 30.5, then
# warmed again for what follows.
LR_KNOTS = [(0, 1), (19.8, 1), (30.5, 0), (31, 0.7), (46.6, 0.24), (47, 0.4), (54.5, 0), (55, 0.45), (70.5, 0), (71, 0.5), (84.5, 0),
    (84.6, 0.5), (88.5, 0.5), (92.5, 0.4), (100.5, 0), (100.6, 0.4), (105.5, 0), (105.6, 0.25), (107.7, 0)]
