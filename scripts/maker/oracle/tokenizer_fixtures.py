#!/usr/bin/env python3
"""Golden token ids of every kind of tokenizer: small ones, trained here, and what the libraries say of a hard corpus.

Owns spec/fixtures/tokenizers/: cases.json (the corpus, an array of texts), and for each tokenizer a folder with
tokenizer.json (or vocab.gguf) and golden.json:

    library          whose word it is: "tokenizers" or "sentencepiece"
    ids[i]           encode(cases[i])                      null where it equals plain[i]
    plain[i]         the same with nothing added and no special text parsed
    text[i]          decode(plain[i])                      null where it equals cases[i]
    shown[i]         decode(ids[i]), specials shown        null where ids[i] is null
    random           [[ids, text], …]: decoding of ids in no order, so of bytes that are not UTF-8

Real vocabularies cannot be in the repository; what matters for equality is how text is cut, normalised, matched and
merged, and that is the real thing: the expressions and settings are those of the models that the names say.

A golden.json may also say { "same_as": folder }.

    pip install -r scripts/maker/oracle/requirements.txt
    python scripts/maker/oracle/tokenizer_fixtures.py          makes all anew (the same bytes each time)
"""
import json
import os
import random
import shutil
import sys
import tempfile

# This file's folder comes first on the path, and this file is called as a library that it needs.
sys.path.pop(0)
import gguf
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "spec", "fixtures", "tokenizers")

TEXT = """
The keeper of the lighthouse wrote down the weather every evening: wind, waves, and the ships that passed. It's what he'd
always done; they've asked him why, he'll say "because I'm here". On 12 March 1987 he counted 1234567 gulls, 42 ships
and 3.14 moons. Don't ask WHY HE'D SHOUT, or what camelCaseNames and snake_case_names have to do with it!

    for (int i = 0; i < n; i++) {
\t    total += values[i] * 2.5e-3;   // the sum
    }
    def add(a, b):
        return a + b

The sea was calm. The sea was grey. The keeper was calm and grey, and the light went round and round and round.
Der Leuchtturmwärter schrieb jeden Abend das Wetter auf: Böen, Grüße, Straße. Le gardien du phare écrivait chaque soir la
météo, naïve façade, œuvre. El farero escribía cada noche: ¿qué tiempo hace, señor? Ο φύλακας του φάρου έγραφε κάθε
βράδυ τον καιρό. Смотритель маяка каждый вечер записывал погоду: ветер, волны и корабли. Người gác đèn biển ghi lại thời
tiết mỗi buổi tối. שומר המגדלור רשם את מזג האוויר בכל ערב. كان حارس المنارة يكتب حالة الطقس كل مساء. प्रकाशस्तंभ का रखवाला हर
शाम मौसम लिखता था। ประภาคารมีคนเฝ้าเขียนสภาพอากาศทุกเย็น 灯台守は毎晩、天気を書き留めた。風、波、船。灯塔看守人每天晚上都记下天气：风、浪和船。
등대지기는 매일 저녁 날씨를 적었다. 👍 🙂 👨‍👩‍👧 🇫🇷 ½ ² ① ™ ﬁ Å
"""

CASES = ["", " ", "  ", "a", " a", "a ", "\n", "\n\n\n", "\t", "\r\n", " \n ", "Hello, world!", "hello   world", "  leading and trailing  ",
  "It's he'd they've I'm he'll can't WHY'S HE'LL 'S 's ſ's'ſ 'Twas", "camelCase PascalCase snake_case UPPERCASE mIxEd iPhone XMLHttpRequest",
  "1 12 123 1234 12345 123456 1234567 3.14 1,000,000 0x1F 1e-9 ½ ² Ⅷ ① ٣٤٥ १२३", "日本語のテキスト、灯台守は毎晩。カタカナ", "灯塔看守人每天晚上都记下天气：风、浪和船。",
  "한국어 등대지기는 매일 저녁", "한국어", "Ο φύλακας του φάρου", "Смотритель маяка", "שומר המגדלור רשם",
  "كان حارس المنارة", "प्रकाशस्तंभ का रखवाला क्षत्रिय", "ประภาคารมีคนเฝ้า", "Người gác đèn biển", "ქართული Հայերեն አማርኛ தமிழ் తెలుగు ಕನ್ನಡ සිංහල ខ្មែរ မြန်မာ ລາວ",
  "café cafe\u0301 Å A\u030a Å e\u0323\u0301 e\u0301\u0323 q\u0307\u0323 q\u0323\u0307 ṩ s\u0323\u0307", "ﬁ ﬀ ㎏ Ａｂｃ １２３ ﷺ ™ ℌ ⑴ ㍿ ĳ",
  "İstanbul IıİiΣσς ǅ ẞß ᏣᎳᎩ", "👍", "👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇫🇷🇩🇪 ❤️ 1️⃣ 👩🏾‍🚀", "😀" * 9, "a\u0300\u0301\u0302\u0303\u0304 z\u0335\u0321\u0335", "\u0301 lone \u0e31 marks \u20dd",
  "\u00a0nbsp\u00a0\u2003em\u2009thin\u202fnarrow\u3000wide\u1680ogham\u205f\u2028line\u2029para\u0085nel", "zero\u200bwidth\u200cjoin\u200der\ufeffbom\u2060\u00ad soft",
  "\u180emongolian\u180e vowel \u180e", "\x01\x02 \x07 \x1b[31m \x7f \x80 \x9f \x1f", "nul\x00byte \x00\x00", "tab\tseparated\t\tvalues\n\tindented\n\t\t- twice\r\n\r\nwindows\rmac",
  "    four\n        eight\n  \n \n\n   end   ", " " * 40 + "x" + " " * 33, "\n" * 17 + " " + "\n" * 5, "\t" * 12, "word " * 30,
  "a" * 300, "ab" * 200, "é" * 150, "中" * 120, "!" * 90, "1" * 100, "the" * 70, "x" + "\u0301" * 70, "=-" * 40, "for (int i = 0; i < n; i++) { total += values[i] * 2.5e-3; }",
  "def add(a, b):\n    return a + b\n\n\nclass X(object):\n\tpass\n", "<html><body class=\"a b\">&amp;</body></html>", "{\"key\": [1, 2.5, null, true], \"s\": \"\\u00e9\\n\"}",
  "https://example.org/path?q=1&r=a%20b#frag user@example.org", "SELECT * FROM t WHERE a >= 10 AND b != 'x';", "$x^2 + y_1 \\leq \\frac{1}{2}$ `code` **bold** ~~no~~ |a|b|",
  "\"quoted\" 'single' “curly” ‘curly’ «guillemets» „low“ —dash– …", "¿Qué? ¡Sí! £5 €6 ¥7 ₹8 § ¶ † ‡ • ° ± × ÷ ≠ ≤ ∞ √ ∑ ∫ → ⇒ ♥ ♫ ✓", "<|endoftext|>", "a<|endoftext|>b <|endoftext|> c",
  "<s>", "</s>", "<s> hello</s>", "<s>hello</s>world<unk>", "before <|im_start|>user\nhi<|im_end|>\n after", "<|im_start|><|im_end|><|im_start", "<|begin_of_text|>x<|eot_id|> y",
  "[INST] do it [/INST] done</s>", "  <s>  ", "<|end|>   next  <|user|>\nhi <|end|>", "<tool> <tool>x y<tool> x<tool>", "NEW new NewNEW NEW. ANEW", "a NEWb (NEW) _NEW é NEW中", " <left>  <left>x  <right>  <right>y  ",
  "<both>  <both> z <both>", "<ab><abc><abcd><abcde", "▁ literal ▁▁ marks▁here", "<0x41> <0xE4><0xBD><0xA0> <0x0A>", "Ġ Ċ âĢĻ Ä ł", "\U0010ffff \U000e0041 \U0001f9ff \U0002a6d6 \ue000",
  "ſtraße ŉ K Å", "mixed日本語and한국어andрусскийand😀emoji123and½", "e.g. Mr. O'Neil's re-entry, co-operate; 24/7 (a.k.a. \"x\")"]

QUIRKS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = QUIRKS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
          r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CL100K = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s")
KIMI = (r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"]
DEEPSEEK3 = [r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?"""
             r"[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"]


def split(expression, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(expression), behavior, invert)


def byte_level(*before, prefix=False, regex=False, after=()):
    parts = [*before, pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex), *after]
    return parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)


def special(*texts, **flags):
    return [AddedToken(t, special=True, normalized=False, **flags) for t in texts]


def template(before=(), after=()):
    def build(t):
        single = " ".join([*before, "$A", *after])
        return processors.TemplateProcessing(single=single, pair=single + " $B", special_tokens=[(x, t.token_to_id(x)) for x in {*before, *after}])
    return build


def train_bytes(pre, size=560, normalizer=None, tokens=(), post=None, **model):
    t = Tokenizer(models.BPE(**model))
    if normalizer is not None:
        t.normalizer = normalizer
    t.pre_tokenizer, t.decoder = pre, decoders.ByteLevel()
    t.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    t.add_tokens(list(tokens))
    if post:
        t.post_processor = post(t)
    return t


def spm_decoder(strip=True):
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()] + ([decoders.Strip(" ", 1, 0)] if strip else []))


def train_spm(size=760, normalizer=None, pre=None, decoder=None, tokens=(), post=None):
    """SentencePiece's shape: <unk> <s> </s>, 256 byte pieces, then characters and merges."""
    first = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % b for b in range(256)]
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")           # for training only
    # From a part of the text, so that the rest has characters which fall back to bytes.
    t.train_from_iterator(TEXT[:1900].split("\n"), trainers.BpeTrainer(vocab_size=size, special_tokens=first, show_progress=False))
    o = json.loads(t.to_str())
    o["added_tokens"], o["normalizer"], o["pre_tokenizer"] = [], None, None    # the bytes are pieces, not added tokens
    t = Tokenizer.from_str(json.dumps(o))
    if normalizer is not None:
        t.normalizer = normalizer
    if pre is not None:
        t.pre_tokenizer = pre
    t.decoder = decoder or spm_decoder()
    t.add_tokens(special("<unk>", "<s>", "</s>") + list(tokens))
    if post:
        t.post_processor = post(t)
    return t


def legacy():
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def train_chars(pre, fuse, unk="<unk>", decoder=None, **more):
    t = Tokenizer(models.BPE(unk_token=unk, fuse_unk=fuse))
    t.pre_tokenizer = pre
    t.train_from_iterator([TEXT[:1500]], trainers.BpeTrainer(vocab_size=200, special_tokens=[unk] if unk else [], show_progress=False))
    if decoder:
        t.decoder = decoder
    return t


ADDED = [AddedToken("<tool>", normalized=False), AddedToken("NEW", single_word=True, normalized=False), AddedToken("<left>", lstrip=True, normalized=False),
         AddedToken("<right>", rstrip=True, normalized=False), AddedToken("<both>", lstrip=True, rstrip=True, normalized=False), AddedToken("<ab>", normalized=False),
         AddedToken("<abc>", normalized=False), AddedToken("<abcd", normalized=False), AddedToken("Å", normalized=True), AddedToken("  ", normalized=True)]
LAST = r"\p{N}"
GPT = dict(regex=True)

MAKERS = {
    "gpt2": lambda: train_bytes(byte_level(**GPT), tokens=special("<|endoftext|>")),
    "gpt2-prefix": lambda: train_bytes(byte_level(prefix=True, **GPT), tokens=special("<|endoftext|>")),
    "llama3": lambda: train_bytes(byte_level(split(LLAMA3)), tokens=special("<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>"), ignore_merges=True,
                                  post=template(["<|begin_of_text|>"])),
    "qwen2": lambda: train_bytes(byte_level(split(QWEN2)), normalizer=normalizers.NFC(), tokens=special("<|endoftext|>", "<|im_start|>", "<|im_end|>")),
    "deepseek-coder": lambda: train_bytes(byte_level(*map(split, DEEPSEEK), pre_tokenizers.Digits(True)), tokens=special("<s>", "</s>"), post=template(["<s>"])),
    "deepseek-v3": lambda: train_bytes(byte_level(*map(split, DEEPSEEK3)), normalizer=normalizers.Sequence([])),
    "starcoder": lambda: train_bytes(byte_level(pre_tokenizers.Digits(True), **GPT), tokens=special("<|endoftext|>")),
    "falcon": lambda: train_bytes(byte_level(pre_tokenizers.Punctuation("contiguous"), **GPT,
                                             after=[pre_tokenizers.Digits(False), split("[0-9][0-9][0-9]")]), tokens=special("<|endoftext|>")),
    "tekken": lambda: train_bytes(byte_level(split(TEKKEN)), tokens=special("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), ignore_merges=True,
                                  post=template(["<s>"], ["</s>"])),
    "cl100k": lambda: train_bytes(byte_level(split(CL100K)), tokens=special("<|endoftext|>")),
    "kimi": lambda: train_bytes(byte_level(split(KIMI))),
    "added": lambda: train_bytes(byte_level(**GPT), normalizer=normalizers.NFC(), tokens=ADDED + special("<s>", "</s>", "<|end|>", rstrip=True)),
    "lower": lambda: train_bytes(byte_level(**GPT), normalizer=normalizers.Sequence([normalizers.Strip(), normalizers.NFD(), normalizers.Lowercase()]),
                                 tokens=[AddedToken("NEW", single_word=True), AddedToken("<Left>", lstrip=True)]),
    "nfkc": lambda: train_bytes(byte_level(**GPT), size=300, normalizer=normalizers.NFKC()),
    "nfkd": lambda: train_bytes(byte_level(**GPT), size=300, normalizer=normalizers.Sequence([normalizers.NFKD(), normalizers.Replace(Regex(r"\s{2,}"), "_"),
                                                                                             normalizers.Replace("the", "THE")])),
    "removed": lambda: train_bytes(byte_level(split("[aeiou]", "removed"), split(r"\w+|\s", "removed", True)), size=300),
    "previous": lambda: train_bytes(byte_level(split(r"\s|the", "merged_with_previous")), size=330),
    "next": lambda: train_bytes(byte_level(split(r"\s|the", "merged_with_next")), size=330),
    "contiguous": lambda: train_bytes(byte_level(split(r"[\s.]", "contiguous"), split("h", "contiguous", True)), size=330),
    "empty-match": lambda: train_bytes(byte_level(split(r"\b|(?=\p{N})", "isolated")), size=330),
    "bert": lambda: train_bytes(byte_level(pre_tokenizers.BertPreTokenizer()), size=300),
    "delimiter": lambda: train_bytes(byte_level(pre_tokenizers.CharDelimiterSplit("/"), pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("removed")), size=300),
    "llama2-legacy": lambda: train_spm(normalizer=legacy(), post=template(["<s>"])),
    "llama2": lambda: train_spm(pre=pre_tokenizers.Metaspace("▁", "first", split=False), post=template(["<s>"])),
    "mistral-always": lambda: train_spm(pre=pre_tokenizers.Metaspace("▁", "always", split=True), tokens=special("[INST]", "[/INST]"), post=template(["<s>"])),
    "metaspace-never": lambda: train_spm(pre=pre_tokenizers.Metaspace("▁", "never", split=True), decoder=spm_decoder(False), post=template(["<s>"], ["</s>"])),
    "metaspace-decoder": lambda: train_spm(pre=pre_tokenizers.Metaspace("▁", "always"), decoder=decoders.Metaspace("▁", "always")),
    "phi3": lambda: train_spm(normalizer=legacy(), tokens=special("<|end|>", "<|user|>", "<|assistant|>", rstrip=True), post=template(["<s>"])),
    "unk": lambda: train_chars(pre_tokenizers.Whitespace(), False),
    "unk-fused": lambda: train_chars(pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]), True, decoder=decoders.Fuse()),
    "dropped": lambda: train_chars(pre_tokenizers.Digits(False), False, unk=None),
}

# The same vocabularies as GGUF: pre-tokenizer's name, and the tokenizer.json whose ids they must have.
GGUF_BYTES = {"gguf-gpt2": ("gpt-2", "gpt2"), "gguf-llama3": ("llama-bpe", "llama3"), "gguf-qwen2": ("qwen2", "qwen2"), "gguf-starcoder": ("starcoder", "starcoder"),
              "gguf-deepseek-coder": ("deepseek-coder", "deepseek-coder"), "gguf-deepseek-v3": ("deepseek-v3", "deepseek-v3"), "gguf-tekken": ("tekken", "tekken")}


def write(folder, name, text):
    with open(os.path.join(folder, name), "w", encoding="utf-8", newline="") as f:
        f.write(text)


def compact(o):
    return json.dumps(o, ensure_ascii=False, separators=(",", ":"))


def lines(golden):
    """One case a line, so that a difference can be read."""
    out = []
    for key, value in golden.items():
        body = ",\n".join(map(compact, value)) if isinstance(value, list) else compact(value)
        out.append("%s:%s" % (compact(key), "[\n%s\n]" % body if isinstance(value, list) else body))
    return "{\n" + ",\n".join(out) + "\n}\n"


def golden_of(t, seed):
    parsed = [t.encode(c).ids for c in CASES]
    shown = [t.decode(ids, skip_special_tokens=False) for ids in parsed]
    t.encode_special_tokens = True
    plain = [t.encode(c, add_special_tokens=False).ids for c in CASES]
    text = [t.decode(ids, skip_special_tokens=False) for ids in plain]
    rng = random.Random(seed)
    random_ids = [[rng.randrange(t.get_vocab_size()) for _ in range(rng.randrange(1, 9))] for _ in range(30)]
    if t.model.byte_fallback:                      # the library's decoder drops good characters next to bad bytes; ours does not
        random_ids = [ids for ids in random_ids if "\ufffd" not in t.decode(ids)]
    return {"library": "tokenizers", "plain": plain, "ids": [p if p != q else None for p, q in zip(parsed, plain)],
            "text": [d if d != c else None for d, c in zip(text, CASES)],
            "shown": [s if p != q else None for s, p, q in zip(shown, parsed, plain)],
            "random": [[ids, t.decode(ids, skip_special_tokens=False)] for ids in random_ids]}


def folder_of(name):
    folder = os.path.join(ROOT, name)
    os.makedirs(folder)
    return folder


def make_json():
    made = {}
    for seed, (name, maker) in enumerate(MAKERS.items()):
        t, folder = maker(), folder_of(name)
        made[name] = t
        o = json.loads(t.to_str())
        merges = [" ".join(m) for m in o["model"]["merges"]]
        if seed % 2 and not any(" " in p for m in o["model"]["merges"] for p in m):
            o["model"]["merges"] = merges          # the older form of the file: one string for each pair
        write(folder, "tokenizer.json", compact(o))
        write(folder, "golden.json", lines(golden_of(Tokenizer.from_str(compact(o)), seed)))
        print("%-18s %5d ids, %d of %d cases come back as they were" % (name, t.get_vocab_size(),
              sum(x is None for x in json.load(open(os.path.join(folder, "golden.json"), encoding="utf-8"))["text"]), len(CASES)))
    return made


def write_gguf(path, model, tokens, types, **fields):
    w = gguf.GGUFWriter(path, "llama")
    w.add_tokenizer_model(model)
    w.add_token_list([t.encode("utf-8") for t in tokens])
    w.add_token_types(types)
    for key, value in fields.items():
        getattr(w, "add_" + key)(value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()


def make_gguf(made):
    for name, (pre, source) in GGUF_BYTES.items():
        t, folder = made[source], folder_of(name)
        o = json.loads(t.to_str())
        added = {a["id"]: a for a in o["added_tokens"]}
        tokens = [t.id_to_token(i) for i in range(t.get_vocab_size())]
        types = [gguf.TokenType.CONTROL if i in added and added[i]["special"] else gguf.TokenType.USER_DEFINED if i in added else gguf.TokenType.NORMAL
                 for i in range(len(tokens))]
        post = t.encode("").ids
        extra = {}
        if post:
            extra = {"bos_token_id": post[0], "add_bos_token": True}
        if len(post) > 1:
            extra |= {"eos_token_id": post[-1], "add_eos_token": True}
        write_gguf(os.path.join(folder, "vocab.gguf"), "gpt2", tokens, types, tokenizer_pre=pre, token_merges=[" ".join(m) for m in o["model"]["merges"]], **extra)
        write(folder, "golden.json", compact({"same_as": source}) + "\n")


def make_sentencepiece():
    """Trained and asked by SentencePiece itself."""
    for name, dummy in (("gguf-spm", True), ("gguf-spm-noprefix", False)):
        folder = folder_of(name)
        with tempfile.TemporaryDirectory() as tmp:
            sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXT.split("\n")), model_prefix=tmp + "/m", vocab_size=620, model_type="bpe", byte_fallback=True,
                                                     character_coverage=0.98, normalization_rule_name="identity", add_dummy_prefix=dummy, num_threads=1, split_digits=True,
                                                     remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, user_defined_symbols=["<tool>"], minloglevel=2)
            sp = sentencepiece.SentencePieceProcessor(model_file=tmp + "/m.model")
        n = sp.get_piece_size()
        types = [gguf.TokenType.UNKNOWN if sp.is_unknown(i) else gguf.TokenType.CONTROL if sp.is_control(i) else gguf.TokenType.BYTE if sp.is_byte(i)
                 else gguf.TokenType.USER_DEFINED if sp.id_to_piece(i) == "<tool>" else gguf.TokenType.NORMAL for i in range(n)]
        write_gguf(os.path.join(folder, "vocab.gguf"), "llama", [sp.id_to_piece(i) for i in range(n)], types, token_scores=[sp.get_score(i) for i in range(n)],
                   bos_token_id=1, eos_token_id=2, unk_token_id=0, add_bos_token=True, add_space_prefix=dummy)
        # SentencePiece puts its dummy prefix at the beginning only, llama.cpp and we also behind each token cut out of the text
        cases = [c if "<tool>" not in c and "\0" not in c else "" for c in CASES]
        plain = [sp.encode(c) for c in cases]
        skip = [c != d for c, d in zip(cases, CASES)]
        golden = {"library": "sentencepiece", "plain": [None if s else p for p, s in zip(plain, skip)],
                  "text": [d if d != c else None for d, c in zip(map(sp.decode, plain), CASES)], "random": []}
        write(folder, "golden.json", lines(golden))


def main():
    shutil.rmtree(ROOT, ignore_errors=True)
    os.makedirs(ROOT)
    write(ROOT, "cases.json", "[\n" + ",\n".join(map(compact, CASES)) + "\n]\n")
    made = make_json()
    make_gguf(made)
    make_sentencepiece()


if __name__ == "__main__":
    main()
