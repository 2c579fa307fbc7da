#!/usr/bin/env python3
"""Golden renderings: what jinja2, set up as transformers does for chat templates, makes of small templates of our own.

Owns spec/fixtures/jinja/golden.json: each entry is a template, alone and with a newline at its end, and its output, or
null where jinja2 refuses it. Needs jinja2 only.

    pip install -r scripts/maker/oracle/requirements.txt
    python scripts/maker/oracle/jinja.py
"""
import datetime
import json
import os

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "spec", "fixtures", "jinja", "golden.json")
NOW = datetime.datetime(2026, 3, 9, 14, 5, 6)
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]


class Generation(Extension):
    """{% generation %} as a scope, which is all that it is to the text."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def refuse(message):
    raise TemplateError(message)


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = lambda x, ensure_ascii=False, indent=None, separators=None, sort_keys=False: json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = NOW.strftime
    return env


# One template a line; those between the lines "<<<" and ">>>" have several.
TEMPLATES = r'''
{{ [1,2,3][::-1] }}|{{ "héllo"[1:3] }}|{{ "héllo"[-1] }}|{{ (1,2)[0] }}|{{ "abc"[5] }}|{{ "abc"[::2] }}|{{ [1,2,3][-2:] }}
{{ 1/2 }} {{ 7//2 }} {{ -7//2 }} {{ -7%3 }} {{ 2**10 }} {{ 2**-1 }} {{ 1e16 }} {{ 1.5e300 }} {{ 0.1+0.2 }} {{ 1e-5 }} {{ 100000.0 }} {{ 123456789012345678 }} {{ 1.0e15 }} {{ 12345678901234567.0 }}
{{ true + 1 }} {{ true == 1 }} {{ "a" == 'a' }} {{ none }} {{ undefinedx }} {{ undefinedx is defined }} {{ [none, true, 1.0, "it's", 'q"', "a'b\"c", "\n\t\\é\x00"] }}
{{ {"a": 1, "b": [1, {"c": none}]} }} {{ {"a":1}.items() | list }} {{ {"a": 1} | tojson(indent=2) }} {{ [] | tojson(indent=2) }} {{ {"b":1,"a":[1,2]} | tojson(sort_keys=true, indent=1) }} {{ "é<&" | tojson }} {{ "é🙂" | tojson(ensure_ascii=true) }} {{ {"a":1} | tojson(separators=(",",":")) }}
{% for i in range(5) if i is odd %}{{ loop.index }}:{{ i }}{{ "," if not loop.last }}{% else %}none{% endfor %}|{% for k, v in {"x":1,"y":2}.items() %}{{k}}={{v}};{% endfor %}
{% set ns = namespace(a=1, b="x") %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% set y = i %}{% endfor %}{{ ns.a }}{{ y is defined }}
{% macro f(a, b=2, c=a) %}[{{ a }},{{ b }},{{ c }}{{ varargs }}{{ kwargs }}]{% endmacro %}{{ f(1) }}{{ f(1, 3, 4, 5, z=6) }}{{ f(b=9, a=8) }}
{% macro g(x) %}<{{ caller(x) }}>{% endmacro %}{% call(y) g(3) %}got {{ y }}{% endcall %}
{% set x %}  block {{ 1 + 1 }} {% endset %}{{ x | trim }}{% set z | upper %}abc{% endset %}{{ z }}{% filter upper %}def{% endfilter %}
{{ "a,b,,c".split(",") }} {{ " a  b ".split() }} {{ "a b c".split(" ", 1) }} {{ "a.b.c".rsplit(".", 1) }} {{ "a\nb\r\nc".splitlines() }} {{ "a b c".split(None, 1) }}
{{ "Hello World".title() }} {{ "hello wORLD-foo" | title }} {{ "abc" | capitalize }} {{ "x".join(["a","b"]) }} {{ ["a",1,none] | join("-") }} {{ "aXbX".replace("X","y",1) }} {{ "abab" | replace("ab","c") }} {{ "abc".replace("", "-") }}
{{ "  x ".strip() ~ "|" ~ "xxaxx".strip("x") ~ "|" ~ "abc".lstrip("ba") ~ "|" ~ "abc".find("c") ~ "abc".find("z") ~ "|" ~ "aéb".find("b") ~ "|" ~ "banana".rfind("an") ~ "banana".count("an") }}
{{ "abc".startswith("ab") }} {{ "abc".endswith(("x","bc")) }} {{ "abc".startswith("b", 1) }} {{ "abc" is string }} {{ [] is sequence }} {{ {} is mapping }} {{ 1 is number }} {{ true is number }} {{ "a" is iterable }} {{ none is none }}
{{ [3,1,2] | sort }} {{ ["b","A","c"] | sort }} {{ [{"a":2},{"a":1}] | sort(attribute="a") | map(attribute="a") | list }} {{ [1,2,3,4] | select("gt", 2) | list }} {{ [1,2] | map("string") | list }} {{ ["a","b"] | map("upper") | join }} {{ [1,1,2] | unique | list }} {{ [1,2,3] | sum }} {{ [1,5,2] | max }} {{ ["b","a"] | min }} {{ [1,2,3] | last }} {{ [] | first }} {{ [1,2,3]|reverse|list }} {{ "abc"|reverse }}
{{ [{"r":"u"},{"r":"a"}] | selectattr("r","equalto","u") | list | length }} {{ [{"r":"u"},{}] | selectattr("r") | list }} {{ [{"r":"u"},{}] | rejectattr("r","defined") | list }} {{ [{"t":"a","n":1},{"t":"b","n":2},{"t":"a","n":3}] | groupby("t") }}
{{ "%s and %d %05.2f %r %x" % ("a", 3, 2.5, "q", 255) }} {{ "%s" % "x" }} {{ "{} {1} {a}".format(1) if false }} {{ "{} {}".format(1, "b") }} {{ "%-5s|%5s" % ("a","b") }} {{ "%s%%" | format(5) }}
{{ 3.7 | int }} {{ "42" | int }} {{ "x" | int }} {{ "3.9" | int }} {{ "1.5" | float }} {{ 2.5 | round }} {{ 3.5|round }} {{ 2.567 | round(2) }} {{ 2.1 | round(method="ceil") }} {{ -3 | abs }} {{ "x" | default("d") }} {{ u | default("d") }} {{ "" | default("d", true) }} {{ none | d("q") }}
{{ "a" if false }}|{{ 1 if false else 2 }}|{{ not true }}|{{ 1 < 2 < 3 }}|{{ 1 < 2 > 3 }}|{{ "a" in "abc" }}|{{ 2 not in [1] }}|{{ "a" in {"a":1} }}|{{ 1 in undefinedz }}
<<<
{%- for a in [1,2] %}
   {%- if a == 1 %}
  x
   {%- endif %}
 y
{%- endfor %}
  {% if true %}
a
  {% endif %}
b {# c #}
  {# d #}
e {%- if true -%}   f   {%- endif -%}   g
  {%+ if true %}x{% endif +%}
z
>>>
{% raw %}{{ x }} {% if %}{% endraw %}|{%- raw -%}  y  {%- endraw -%} z
{% for a in [1,2,3,4] %}{% if a == 2 %}{% continue %}{% endif %}{% if a == 4 %}{% break %}{% endif %}{{ a }}{% endfor %}
{% for x in [[1,[2,3]],[4,[]]] recursive %}{{ loop.depth }}{{ x[0] if x[0] is defined and x is not number else x }}{% if x is not number %}({{ loop(x[1]) }}){% endif %}{% endfor %}
{% for x in "abc" %}{{ loop.cycle("o","e") }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.revindex }}{{ loop.changed(x) }}{% endfor %}
{{ "line1\nline2\n\nline3" | indent(2) }}|{{ "a\nb" | indent(2, true) }}|{{ "a\n\nb" | indent(2, blank=true) }}
{{ messages[0].content.foo }}|{{ messages[0]["role"] }}|{{ messages[-1].role }}|{{ messages[9] is defined }}|{{ messages | length }}
{{ undefinedq.x }}
{{ none.x is defined }}
{{ none + 1 }}
{{ "a" + 1 }}
{{ 1 ~ "a" ~ none ~ true }}
{{ [1,2] + [3] }} {{ [1] * 3 }} {{ "ab" * 2 }} {{ "ab" * -1 }}
{{ {"a":1}["a"] }} {{ {"a":1}.b }} {{ {"a":1}.get("b", 5) }} {{ {"items": 3}.items is callable }} {{ {"items": 3}["items"] }}
{{ x.append(1) }}
{% set l = [1] %}{{ l.append(2) }}
{{ raise_exception("no") }}
{{ strftime_now("%Y-%m-%d %H:%M %b %B %A %-d %j %p %I") }}
{{ dict(a=1, b=2) }} {{ dict({"z":1}, a=2) }} {{ range(3) | list }} {{ range(5,1,-2) | list }} {{ range(0) | list }} {{ range(3)[1] }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% with c = 5, d = 6 %}{{ c }}{{ d }}{% endwith %}{{ c is defined }}
{{ [1,2,3,4,5] | batch(2) | list }} {{ [1,2,3,4,5] | batch(2, 0) | list }} {{ [1,2,3,4,5] | slice(2) | list }} {{ [1,2,3,4,5]|slice(3, 0)|list }}
{{ {"b":2,"a":1} | dictsort }} {{ {"b":1,"a":2} | dictsort(by="value") }} {{ {"b":2} | items | list }}
{{ "a-b_c d" | title }} {{ "foo bar baz qux" | truncate(9) }} {{ "foo bar baz qux" | truncate(9, true, leeway=0) }} {{ "ab cd"|wordcount }} {{ "a b/c?é" | urlencode }} {{ "x" | center(5) }}|{{ "xx".center(5) }}|{{ "5".zfill(3) }}|{{ "-5".zfill(4) }}|{{ "a".ljust(3) }}|{{ "a".rjust(3,"*") }}
{{ 'a' 'b' }} {{ "\u00e9\x41\101\q" }} {{ 'it\'s' }} {{ 0x1f }} {{ 1_000 }} {{ 0b11 }} {{ 1e3 }} {{ .5 if false else 5 }}
{{ -2 ** 2 }} {{ (-2) ** 2 }} {{ 2 ** 3 ** 2 }} {{ 5 - 2 - 1 }} {{ 2 + 3 * 4 }} {{ 1 + 2 ~ 3 }} {{ -1 | abs }} {{ - 1 }}
{{ "a" is in ["a"] }} {{ 4 is divisibleby 2 }} {{ 3 is even }} {{ "A" is upper }} {{ 1 is sameas 1 }} {{ true is true }} {{ 1 is true }} {{ 0 is false }} {{ x is not defined and true }} {{ 5 is gt 3 }} {{ "a" is eq "a" }}
{{ "abc".isdigit() }}{{ "12".isdigit() }}{{ "aB1".isalnum() }}{{ " ".isspace() }}{{ "".isspace() }}{{ "aBc".swapcase() }}{{ "abc".partition("b") }}{{ "abcb".rpartition("b") }}{{ "abc".partition("z") }}{{ "prefix-x".removeprefix("prefix-") }}{{ "x.py".removesuffix(".py") }}
{% if messages %}yes{% endif %}{% if [] %}no{% elif {} %}no{% elif "" %}no{% elif 0 %}no{% elif 0.0 %}no{% elif none %}no{% elif u %}no{% else %}else{% endif %}{% if (messages | selectattr("nope")) %}gen{% endif %}
{% set g = messages | map(attribute="role") %}{% for x in g %}{{ x }}{% endfor %}{% for x in g %}{{ x }}{% endfor %}
{{ messages | map(attribute="role") | length }}
{{ [1,2,3] | join(", ") }}{{ [{"a":1},{"a":2}] | join("+", attribute="a") }}{{ "abc" | join("-") }}{{ "abc" | list }}{{ {"a":1} | list }}{{ "abc" | first }}{{ "abc"|last }}{{ {"a":1}|length }}{{ "é"|length }}
{{ (messages | first).role }}{{ messages|map("tojson")|join("\n") }}{{ messages[0].content | string | upper }}
{{ cycler("a","b").next() }}{% set j = joiner("|") %}{{ j() }}x{{ j() }}y{% set c = cycler(1,2) %}{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.next() }}
{{ caller is defined }}{{ loop is defined }}{{ "" | trim }}{{ "xyx"|trim("x") }}{{ 5|string + "a" }}{{ [1,[2]]|string }}
{{ "a"|escape + "<" }}{{ "<"|e }}{{ ("<"|safe) ~ "<" }}{{ "&"|forceescape }}
{% include "x" %}
{% for x in y %}{{ x }}{% else %}empty{% endfor %}{% for x in none %}{% endfor %}
{{ foo | nosuch }}
{{ foo is nosuch }}
{% nosuch %}
{{ 1 + }}
{{ "abc" }
{% if x %}
{{ (1, 2) }} {{ (1,) }} {{ () }} {{ [1,] }} {{ {"a":1,} }}
{{ ["a", "b"] | map("replace", "a", "z") | list }} {{ [[1,2],[3]] | map("first") | list }} {{ [{"a":{"b":1}}] | map(attribute="a.b") | list }} {{ [{"a":1},{}] | map(attribute="a", default="?") | list }} {{ [[1,2]] | map(attribute=1) | list }}
{{ 10 > 9.5 }}{{ "b" > "a" }}{{ [1,2] < [1,3] }}{{ 1 == 1.0 }}{{ "1" == 1 }}{{ none == none }}{{ [1] == [1.0] }}{{ {"a":1} == {"a":1} }}
{{ 1 < "a" }}
{{ -5 // 2 }}{{ 5.5 // 2 }}{{ 5.5 % 2 }}{{ -5 % 3 }}{{ 1 // 0 }}
{{ namespace(a=1).b }}{{ namespace(a=1).a }}
{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}{% for i in [1] %}{% set x = 3 %}{{ x }}{% endfor %}{{ x }}{% macro m() %}{{ x }}{% endmacro %}{% set x = 9 %}{{ m() }}
{% generation %}abc{% set q = 1 %}{% endgeneration %}{{ q is defined }}
'''


def templates():
    block = None
    for line in TEMPLATES.strip("\n").split("\n"):
        if line == "<<<":
            block = []
        elif line == ">>>":
            yield "\n".join(block)
            block = None
        elif block is not None:
            block.append(line)
        else:
            yield line


def main():
    env, golden = environment(), []
    for template in templates():
        for end in ("", "\n"):
            try:
                output = env.from_string(template + end).render(messages=MESSAGES)
            except Exception:                         # whatever Python raises is a refusal
                output = None
            golden.append({"template": template + end, "output": output})
    os.makedirs(os.path.dirname(OUT), exist_ok=True)
    with open(OUT, "w", encoding="utf-8", newline="") as f:
        json.dump(golden, f, ensure_ascii=False, indent=0)
        f.write("\n")


main()
