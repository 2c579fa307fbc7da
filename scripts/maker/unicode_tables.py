#!/usr/bin/env python3
"""Writes core/base/unicode_tables.h, the character data behind core/base/unicode.c, from Python's unicodedata.

    python3 scripts/maker/unicode_tables.py > core/base/unicode_tables.h

Run again only to move to a newer Unicode version; the file is committed so that a build needs no Python.
"""
import sys
import unicodedata as u

LAST = 0x110000
HANGUL = range(0xAC00, 0xAC00 + 11172)
SURROGATES = range(0xD800, 0xE000)
cps = [c for c in range(LAST) if c not in SURROGATES]
# The tokenizers library, whose ids ours must equal, normalises by Unicode 12.0: decompositions added since are left out.
NEWER = {0x32FF, *range(0xA7F2, 0xA7F5), 0xAB69, *range(0x10781, 0x107BB), 0x11938, 0x1F16C, *range(0x1FBF0, 0x1FBFA)}


def ranges(pairs):
    """[(cp, value)] in order -> [(first, last, value)]"""
    out = []
    for cp, value in pairs:
        if out and out[-1][1] == cp - 1 and out[-1][2] == value:
            out[-1][1] = cp
        else:
            out.append([cp, cp, value])
    return out


def emit(kind, name, rows, note):
    print(f"\n/* {note} */\nstatic const {kind} {name}[] = {{")
    line = " "
    for row in rows:
        item = " " + row + ","
        if len(line) + len(item) > 120:
            print(line)
            line = " "
        line += item
    print(line + "\n};")


def brace(*values):
    return "{" + ",".join(f"{v:#x}" if v > 9 else str(v) for v in values) + "}"


canonical, compatible = {}, {}
for c in cps:
    if c in HANGUL or c in NEWER:
        continue
    d = u.decomposition(chr(c))
    if not d:
        continue
    parts = d.split()
    if parts[0].startswith("<"):
        compatible[c] = [ord(x) for x in u.normalize("NFKD", chr(c))]
    else:
        canonical[c] = [int(x, 16) for x in parts]
        full = [ord(x) for x in u.normalize("NFKD", chr(c))]
        if full != [ord(x) for x in u.normalize("NFD", chr(c))]:
            compatible[c] = full
order = sorted(canonical)
composed = {}
for i, c in enumerate(order):
    parts = canonical[c]
    if len(parts) == 2 and u.normalize("NFC", chr(c)) == chr(c):
        composed[tuple(parts)] = i
composed = {k: i for k, i in composed.items() if order[i] not in NEWER}
seconds = {b for _, b in composed} | set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))


def joins(c):
    """May c change together with what stands before it, in any of the four forms?"""
    return any(u.combining(s[0]) or ord(s[0]) in seconds
               for s in (u.normalize("NFD", chr(c)), u.normalize("NFKD", chr(c)), chr(c)))


def is_word(c):
    circled = (0x24B6 <= c <= 0x24E9 or 0x1F130 <= c <= 0x1F149 or 0x1F150 <= c <= 0x1F169 or 0x1F170 <= c <= 0x1F189)
    kind = u.category(chr(c))
    return kind[0] in "LM" or kind in ("Nl", "Nd", "Pc") or circled or c in (0x200C, 0x200D)


lower = []
for c in cps:
    s = chr(c).lower()
    if len(s) == 1 and s != chr(c):
        delta = ord(s) - c
        last = lower[-1] if lower else None
        if last and last[3] == delta and (c - last[1]) in (1, 2) and (last[0] == last[1] or last[2] == c - last[1]):
            last[2] = c - last[1]
            last[1] = c
        else:
            lower.append([c, c, 1, delta])

pool, where = [], {}
rows = []
for c in sorted(compatible):
    key = tuple(compatible[c])
    if key not in where:
        where[key] = len(pool)
        pool += key
    rows.append(brace(c, where[key], len(key)))

print(f"""/* unicode_tables.h — character data of Unicode {u.unidata_version}, written by scripts/maker/unicode_tables.py; do not edit.
 * Included by unicode.c only. All tables are sorted by their first column. */""")
emit("range_value", "ccc_table", [brace(a, b, v) for a, b, v in ranges((c, u.combining(chr(c))) for c in cps
     if u.combining(chr(c)))], "first, last, canonical combining class")
emit("pair_entry", "canonical_table", [brace(c, *(canonical[c] + [0])[:2]) for c in order],
     "character, its canonical decomposition of one (then 0) or two characters; not yet recursive")
emit("uint16_t", "compose_table", [str(composed[k]) for k in sorted(composed)],
     "rows of canonical_table that compose, sorted by (first, second)")
emit("compat_entry", "compat_table", rows, "character, where in compat_pool its full NFKD lies, how many")
emit("uint32_t", "compat_pool", [f"{x:#x}" for x in pool], "the characters that compat_table points to")
emit("range_pair", "joins_table", [brace(a, b) for a, b, _ in ranges((c, 1) for c in cps if joins(c))],
     "first, last of those that may combine with or reorder before the character before them")
emit("range_pair", "word_table", [brace(a, b) for a, b, _ in ranges((c, 1) for c in cps if is_word(c))],
     "first, last of letters, marks, digits, connectors and joiners: \\w")
emit("lower_entry", "lower_table", ["{%#x,%#x,%d,%d}" % tuple(r) for r in lower],
     "first, last, stride, what to add for the lower case; U+0130 is apart")
