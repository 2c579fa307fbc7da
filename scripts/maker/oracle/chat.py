#!/usr/bin/env python3
"""Golden prompts: what transformers' apply_chat_template makes of conversations, with the models' own templates.

Owns spec/fixtures/chat/golden.json; the templates beside it (*.jinja) are the models', as published. "conversations"
are rendered with and without a generation prompt; "calls" have tools, calls of them, parts and thinking turned off.
null: the template refuses them.

    pip install -r scripts/maker/oracle/requirements.txt
    python scripts/maker/oracle/chat.py
"""
import glob
import json
import os
import sys

sys.path.pop(0)                                   # this folder has a tokenizers.py
from transformers import PreTrainedTokenizerFast
from tokenizers import Tokenizer, models

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "spec", "fixtures", "chat")
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


TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather of a place.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "A city's name"}}, "required": ["city"]}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "id": "abcdefghi", "function": {"name": "weather", "arguments": {"city": "Paris"}}}]}
RESULT = {"role": "tool", "content": "{\"degrees\": 20}", "name": "weather", "tool_call_id": "abcdefghi"}
CALLS = [
    {"messages": turns(("user", "How warm is Paris?")), "tools": [TOOL]},
    {"messages": turns(("system", "Be brief."), ("user", "How warm is Paris?")), "tools": [TOOL]},
    {"messages": turns(("user", "How warm is Paris?")) + [CALL, RESULT] + turns(("assistant", "20 °C."), ("user", "Thanks")), "tools": [TOOL]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "you"}]}]},
    {"messages": turns(("user", "q"), ("assistant", "<think>\nlong\n</think>\n\na"), ("user", "r")), "enable_thinking": False},
]


def rendered(tokenizer, template, messages, **options):
    try:
        return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, date_string=DATE, **options)
    except Exception:                             # whatever Python raises is a refusal
        return None


def main():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])), bos_token=BOS, eos_token=EOS)
    golden = {"bos": BOS, "eos": EOS, "date": DATE, "conversations": CONVERSATIONS, "calls": CALLS, "templates": {}}
    for path in sorted(glob.glob(os.path.join(ROOT, "*.jinja"))):
        with open(path, encoding="utf-8", newline="") as f:
            text = f.read()
        golden["templates"][os.path.basename(path)[:-6]] = {
            "conversations": [[rendered(tokenizer, text, m, add_generation_prompt=p) for p in (False, True)] for m in CONVERSATIONS],
            "calls": [rendered(tokenizer, text, add_generation_prompt=True, **c) for c in CALLS],
        }
    with open(os.path.join(ROOT, "golden.json"), "w", encoding="utf-8", newline="") as f:
        json.dump(golden, f, ensure_ascii=False, indent=1)
        f.write("\n")


main()
