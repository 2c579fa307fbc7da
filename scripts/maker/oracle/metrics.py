#!/usr/bin/env python3
"""Golden scores: what published metrics say of made-up answers.

Owns spec/fixtures/eval/metrics.json: a list of { metric, answer, wanted, classes, score }. ROUGE comes from the two
packages that papers use, edit similarity from fuzzywuzzy over difflib (without python-Levenshtein, as LongBench's
requirements install it). SQuAD's, RULER's, LongBench's and L-Eval's own few lines are written out below.

    pip install -r scripts/maker/oracle/requirements.txt
    python scripts/maker/oracle/metrics.py
"""
import json
import os
import random
import re
import string
from collections import Counter

from fuzzywuzzy import fuzz
from rouge import Rouge
from rouge_score import rouge_scorer

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "spec", "fixtures", "eval", "metrics.json")
SCORER = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)


def normalise(s):
    s = "".join(c for c in s.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", s).split())


def f1(answer, wanted):
    got, right = normalise(answer).split(), normalise(wanted).split()
    same = sum((Counter(got) & Counter(right)).values())
    if same == 0:
        return 0.0
    p, r = same / len(got), same / len(right)
    return 2 * p * r / (p + r)


def rouge_l_sets(answer, wanted):
    try:
        return Rouge().get_scores([answer], [wanted], avg=True)["rouge-l"]["f"]
    except ValueError:
        return 0.0


def rouge(answer, wanted):
    s = SCORER.score(wanted, answer)
    return (s["rouge1"].fmeasure * s["rouge2"].fmeasure * s["rougeL"].fmeasure) ** (1 / 3)


def numbers(answer, wanted):
    found = re.findall(r"\d+", answer)
    return 0.0 if not found else sum(n == wanted for n in found) / len(found)


def edit(answer, wanted):
    line = ""
    for each in answer.lstrip("\n").split("\n"):
        if "`" not in each and "#" not in each and "//" not in each:
            line = each
            break
    return fuzz.ratio(line, wanted) / 100


def classification(answer, wanted, classes):
    found = [c for c in classes if c in answer]
    for c in found:
        if c in wanted and c != wanted:
            found.remove(c)
    return 1.0 / len(found) if wanted in found else 0.0


def number_in(s):
    match = re.search(r"The answer is (\S+)", s)
    said = match.group(1) if match else ""
    if not match:
        for word in s.split("\n\n")[0].split(" ")[::-1]:
            if any(c.isdigit() for c in word):
                said = word
                break
    out = ""
    for c in said:
        if c.isdigit():
            out += c
        if c == ".":
            break
    return out


METRICS = {
    "contains": lambda a, w, c: sum(x.lower() in a.lower() for x in w) / len(w),
    "contains_any": lambda a, w, c: max(float(x.lower() in a.lower()) for x in w),
    "exact": lambda a, w, c: max(float(normalise(a) == normalise(x)) for x in w),
    "f1": lambda a, w, c: max(f1(a, x) for x in w),
    "rouge_l": lambda a, w, c: max(SCORER.score(x, a)["rougeL"].fmeasure for x in w),
    "rouge": lambda a, w, c: max(rouge(a, x) for x in w),
    "rouge_l_sets": lambda a, w, c: max(rouge_l_sets(a, x) for x in w),
    "edit": lambda a, w, c: max(edit(a, x) for x in w),
    "classification": lambda a, w, c: max(classification(a, x, c) for x in w),
    "retrieval": lambda a, w, c: max(numbers(a, re.findall(r"Paragraph (\d+)", x)[0]) for x in w),
    "count": lambda a, w, c: max(numbers(a, x) for x in w),
    "number": lambda a, w, c: max(float(number_in(a) == number_in(x)) for x in w),
}

WORDS = ("the a an of river House stone, rain. Über naïve «quoted» the’ x-ray don't 1876 42 U.S. forty-two "
         "seven\u00a0miles Paris paris, PARIS! green (old) new old and or café CAFÉ über ŽIVOT život МОСКВА москва Ἀθῆναι ΑΘΗΝΑ αθηνα the").split(" ")
CODE = "def f(x): return x + 1 if (a == b) for i in range(n) self.value = None import os print foo bar".split(" ")
CLASSES = ["Food", "Date", "Number of something", "Number", "Group or organization of person", "Group", "Title"]


def made_up(rng, words, most):
    text = " ".join(rng.choice(words) for _ in range(rng.randint(1, most)))
    return rng.choice(["", "", "\n", " "]) + text


def changed(rng, s, words):
    """Another answer that has much of this one."""
    parts = s.split(" ")
    for _ in range(rng.randint(0, 4)):
        at = rng.randrange(len(parts))
        if rng.random() < 0.4:
            parts[at] = rng.choice(words)
        elif rng.random() < 0.5 and len(parts) > 1:
            del parts[at]
        else:
            parts.insert(at, rng.choice(words))
    return " ".join(parts)


def main():
    rng, cases = random.Random(5), []

    def add(metric, answer, wanted, classes=None):
        case = {"metric": metric, "answer": answer, "wanted": wanted, "score": METRICS[metric](answer, wanted, classes)}
        if classes:
            case["classes"] = classes
        cases.append(case)

    for metric in ["contains", "contains_any", "exact", "f1", "rouge_l", "rouge", "rouge_l_sets"]:
        for _ in range(24):
            wanted = [made_up(rng, WORDS, 12) for _ in range(rng.randint(1, 3))]
            answer = changed(rng, rng.choice(wanted), WORDS) if rng.random() < 0.8 else made_up(rng, WORDS, 12)
            add(metric, answer, [w.strip() for w in wanted])
        add(metric, "", ["the river"])
        add(metric, "The answer: a river, the stone", ["River stone"])
    for most in (6, 14, 60, 90):                 # of 200 characters and more difflib drops what is frequent
        for _ in range(8):
            wanted = made_up(rng, CODE, most).strip()
            answer = changed(rng, wanted, CODE)
            if rng.random() < 0.3:
                answer = rng.choice(["# a comment\n", "```python\n", "\n\n", "// so\n"]) + answer + "\nreturn"
            add("edit", answer, [wanted])
    for _ in range(24):
        wanted = rng.choice(CLASSES)
        add("classification", " ".join(rng.choice(CLASSES) for _ in range(rng.randint(1, 3))), [wanted], CLASSES)
    for _ in range(12):
        n = str(rng.randint(1, 4))
        add("retrieval", rng.choice(["Paragraph %d", "It is %d or 12.", "%d, %d", "none"]).replace("%d", n), ["Paragraph " + n])
        add("count", rng.choice(["%d", "There are %d of 30.", "none"]).replace("%d", n), [str(rng.randint(1, 4))])
    for answer in ["So 3 + 4 = 7. The answer is 1,234.", "The answer is $18.00 a day", "it costs 5 dollars", "none",
                   "First 3.\n\nThen 9", "Janet sells 16 - 3 = <<16-3=13>>13 eggs", "-7", "12.5", "The answer is\n42"]:
        for wanted in ["18", "1234", "5", "13", "3", "42"]:
            add("number", answer, [wanted])
    os.makedirs(os.path.dirname(OUT), exist_ok=True)
    with open(OUT, "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(c, ensure_ascii=True, sort_keys=True) for c in cases) + "\n]\n")


main()
