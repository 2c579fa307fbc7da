"""OpenAI's package against a server of `pyramid serve`: python3 openai_client.py URL.

Prints one line for each check that held; an exception says which did not."""

import sys

import openai
from openai import OpenAI

client = OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0, timeout=60)
MESSAGES = [{"role": "user", "content": "Name a colour."}]


def check(name, held, what=None):
    if not held:
        raise SystemExit(f"{name}: {what!r}")
    print("held:", name)


models = client.models.list()
check("models", len(models.data) == 1, models)
model = models.data[0].id
check("model", client.models.retrieve(model).id == model)

whole = client.completions.create(model=model, prompt="Once upon a time", max_tokens=16,
                                  temperature=0, logprobs=2)
check("completion", len(whole.choices[0].text) > 0 and whole.usage.completion_tokens == 16, whole)
check("extension", whole.usage.model_extra["rows_kept"] > 0, whole.usage)
logprobs = whole.choices[0].logprobs
check("logprobs", len(logprobs.tokens) == 16 and all(p <= 0 for p in logprobs.token_logprobs),
      logprobs)
pieces = [c.choices[0].text for c in client.completions.create(
    model=model, prompt="Once upon a time", max_tokens=16, temperature=0, stream=True)]
check("completion stream", "".join(pieces) == whole.choices[0].text, pieces)
several = client.completions.create(model=model, prompt=["a", "b"], n=2, max_tokens=4, seed=1)
check("n", [c.index for c in several.choices] == [0, 1, 2, 3], several)
again = client.completions.create(model=model, prompt=["a", "b"], n=2, max_tokens=4, seed=1)
check("seed", [c.text for c in several.choices] == [c.text for c in again.choices], again)

vectors = client.embeddings.create(model=model, input=["a cat", "a cat", "a dog"])
check("embeddings", len(vectors.data) == 3
      and abs(sum(x * x for x in vectors.data[2].embedding) - 1) < 1e-4
      and vectors.data[0].embedding == vectors.data[1].embedding != vectors.data[2].embedding,
      vectors.usage)

chat = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=12,
                                      temperature=0, logprobs=True, top_logprobs=3)
check("chat", chat.choices[0].message.role == "assistant", chat)
check("chat logprobs", len(chat.choices[0].logprobs.content) > 0
      and len(chat.choices[0].logprobs.content[0].top_logprobs) == 3, chat.choices[0].logprobs)
text, usage = "", None
for chunk in client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=12,
                                            temperature=0, stream=True,
                                            stream_options={"include_usage": True}):
    if chunk.choices:
        text += chunk.choices[0].delta.content or ""
    usage = chunk.usage or usage
check("chat stream", text == chat.choices[0].message.content, text)
check("chat usage", usage.completion_tokens == chat.usage.completion_tokens, usage)

policy = client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": "The cat sat on the mat. " * 20}],
    max_tokens=4, temperature=0, extra_body={"pyramid": {"policy": "h2o",
                                                         "options": {"ratio": 0.3}}})
check("policy", policy.usage.model_extra["rows_evicted"] > 0, policy.usage)

schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"],
          "additionalProperties": False}
formatted = client.chat.completions.create(
    model=model, messages=MESSAGES, max_tokens=40,
    response_format={"type": "json_schema",
                     "json_schema": {"name": "x", "schema": schema, "strict": True}})
check("response_format", formatted.choices[0].message.content.replace(" ", "").replace("\n", "")
      in ('{"n":1}', '{"n":2}'), formatted.choices[0].message.content)

# what is written is chosen by a grammar, so that a model of any size calls a tool
tools = [{"type": "function", "function": {"name": "look", "description": "looks",
          "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}}]
call = r'root ::= "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"x\"}}\n</tool_call>"'
for stream in (False, True):
    answer = client.chat.completions.create(model=model, messages=MESSAGES, tools=tools,
                                            max_tokens=120, stream=stream,
                                            extra_body={"grammar": call})
    if stream:
        calls, reason, said = [], None, ""
        for chunk in answer:
            calls += chunk.choices[0].delta.tool_calls or []
            said += chunk.choices[0].delta.content or ""
            reason = chunk.choices[0].finish_reason or reason
        check("tools stream", said == "", said)
    else:
        calls, reason = answer.choices[0].message.tool_calls, answer.choices[0].finish_reason
    check("tools", len(calls) == 1 and calls[0].function.name == "look"
          and calls[0].function.arguments == '{"at":"x"}' and reason == "tool_calls", calls)

for name, error, make in [
    ("bad request", openai.BadRequestError,
     lambda: client.completions.create(model=model, prompt="a", max_tokens=-1)),
    ("no model", openai.NotFoundError,
     lambda: client.completions.create(model="none", prompt="a")),
    ("too long", openai.BadRequestError,
     lambda: client.completions.create(model=model, prompt="cat " * 9000)),
]:
    try:
        make()
    except error as e:
        check(name, isinstance(e.body, dict) and e.body["message"], e.body)
    else:
        raise SystemExit(f"{name}: nothing was raised")

# leaves in the middle of an answer
with client.completions.create(model=model, prompt="a", max_tokens=500, stream=True) as stream:
    for i, chunk in enumerate(stream):
        if i == 3:
            break
print("held: leaving")
