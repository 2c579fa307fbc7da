#!/usr/bin/env python3
"""Golden prompts: what transformers' apply_chat_template makes of conversations, with the models' own templates.

Owns spec/fixtures/chat/golden.json; the templates beside it (*.jinja) are the models', as published. Those called
foreign-… belong to no family that Pyramid knows and must be refused.

    python scripts/oracle/chat.py
"""
import glob
import json
import os
import sys

sys.path.pop(0)                                   # this folder has a tokenizers.py
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerFast
from tokenizers import Tokenizer, models

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "spec", "fixtures", "chat")
BOS, EOS, DATE = "<s>", "</s>", "26 Jul 2024"


def turns(*pairs):
    return [{"role": r, "content": c} for r, c in pairs]


CONVERSATIONS = [
    turns(("user", "Hello")),
    turns(("system", "Be brief."), ("user", "Hello")),
    turns(("user", "Hello"), ("assistant", "Hi!"), ("user", "Who are you?")),
    turns(("system", "Be brief.\nAnd kind."), ("user", "Hello"), ("assistant", "Hi!"), ("user", "Who are you?"), ("assistant", "A keeper.")),
    turns(("system", "  spaces  "), ("user", "\n  padded \u00a0 "), ("assistant", " ok\n"), ("user", "l'été 日本語 🙂 {{ bos_token }} <|im_end|>")),
    turns(("system", ""), ("user", "")),
    turns(("user", "q"), ("assistant", "<think>\nlong thoughts\n</think>\n\nanswer"), ("user", "more"), ("assistant", "<think>\nagain\n</think>\n\nlast")),
    turns(("user", "a"), ("user", "b")),
    turns(("assistant", "first")),
    turns(("user", "a"), ("assistant", "b"), ("system", "late"), ("user", "c")),
    turns(("user", " \n\t ")),
    turns(("user", "<<SYS>>\nmine\n<</SYS>>\n\nhello")),
]


def main():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])), bos_token=BOS, eos_token=EOS)
    golden = {"bos": BOS, "eos": EOS, "date": DATE, "conversations": CONVERSATIONS, "templates": {}}
    for path in sorted(glob.glob(os.path.join(ROOT, "*.jinja"))):
        name = os.path.basename(path)[:-6]
        if name.startswith("foreign-"):
            continue
        with open(path, encoding="utf-8", newline="") as f:
            text = f.read()
        rows = []
        for messages in CONVERSATIONS:
            row = []
            for prompt in (False, True):
                try:
                    row.append(tokenizer.apply_chat_template(messages, chat_template=text, tokenize=False, add_generation_prompt=prompt, date_string=DATE))
                except TemplateError:
                    row.append(None)              # the template refuses it
            rows.append(row)
        golden["templates"][name] = rows
    with open(os.path.join(ROOT, "golden.json"), "w", encoding="utf-8", newline="") as f:
        json.dump(golden, f, ensure_ascii=False, indent=1)
        f.write("\n")


main()
