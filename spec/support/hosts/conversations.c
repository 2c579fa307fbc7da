/* conversations.c MODEL FOLDER — what the facade gives a host beyond a text: conversations, tokens
 * with their probabilities, reasons, cancelling, closing inside callbacks, structs of other
 * versions. Prints each check that fails. */
#include "pyramid.h"

#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int failures;

#define CHECK(condition, ...) \
  do { \
    if (!(condition)) { \
      failures++; \
      printf("line %d: %s: ", __LINE__, #condition); \
      printf(__VA_ARGS__); \
      putchar('\n'); \
    } \
  } while (0)
#define OK(host, call) do { pyr_status got = (call); CHECK(got == PYR_OK, "%s: %s", \
                                                           pyr_status_name(got), \
                                                               pyr_host_error(host)); } while (0)

static const char *model, *folder;

typedef struct answer {
  char text[8192];
  size_t length;
  int tokens, stop_after, bad;     /* stop_after 0: never */
  int32_t ids[512];
  double logprobs[512];
  pyr_host *host, *close_host;     /* closed at the second token */
  pyr_conversation *close_talk;
  int cancel_after;
} answer;

static int on_token(void *ud, const pyr_token *token) {
  answer *a = ud;
  if (strlen(token->text) != token->length) a->bad++;
  if (a->length + token->length < sizeof a->text) {
    memcpy(a->text + a->length, token->text, token->length + 1);
    a->length += token->length;
  }
  if (token->id < 0) return 0;
  if (a->tokens < 512) {
    a->ids[a->tokens] = token->id;
    a->logprobs[a->tokens] = token->logprob;
  }
  a->tokens++;
  double before = 0;
  for (int i = 0; i < token->count; i++) {
    if (i && token->logprobs[i] > before) a->bad++;
    before = token->logprobs[i];
  }
  /* it is greedy */
  if (token->count > 0 && (token->ids[0] != token->id || token->logprobs[0] != token->logprob))
    a->bad++;
  if (a->tokens == a->cancel_after) pyr_host_cancel(a->host);
  if (a->tokens == 2) {
    pyr_conversation_close(a->close_talk);
    pyr_host_close(a->close_host);
  }
  return a->tokens == a->stop_after;
}

static pyr_host *open_host(const char *policy) {
  pyr_host *host;
  pyr_host_options options = { .threads = 1, .policy = policy };
  OK(host, pyr_host_open(model, &options, &host));
  return host;
}

static pyr_conversation *open_talk(pyr_host *host, const char *system) {
  pyr_conversation *talk = NULL;
  pyr_conversation_options options = { .system = system };
  OK(host, pyr_conversation_open(host, &options, &talk));
  return talk;
}

static pyr_host_stats say(pyr_host *host, pyr_conversation *talk, const char *text, int most,
                          answer *out) {
  pyr_host_stats stats;
  pyr_generate_options how = { .max_tokens = most, .on_token = on_token, .ud = out };
  OK(host, pyr_conversation_say(talk, text, &how));
  pyr_host_get_stats(host, &stats);
  return stats;
}

/* ---- tokens ---------------------------------------------------------------------------------- */

static void check_tokens(void) {
  pyr_host *host = open_host("h2o");
  pyr_host_stats stats;
  answer plain = { 0 }, told = { 0 }, some = { .stop_after = 3 };
  pyr_generate_options how = { .max_tokens = 20, .on_token = on_token, .ud = &plain };
  OK(host, pyr_host_generate(host, "the quick brown fox", &how));
  pyr_host_get_stats(host, &stats);
  CHECK(plain.tokens == stats.generated_tokens && plain.tokens > 3, "%d, %d", plain.tokens,
        (int)stats.generated_tokens);
  CHECK(strcmp(stats.finish, plain.tokens == 20 ? "length" : "eos") == 0, "%s", stats.finish);
  CHECK(isnan(plain.logprobs[0]), "not asked for");

  how.ud = &told;
  how.alternatives = 5;
  OK(host, pyr_host_generate(host, "the quick brown fox", &how));
  CHECK(told.tokens == plain.tokens && memcmp(told.ids, plain.ids,
                                              (size_t)told.tokens * sizeof *told.ids) == 0,
                                                  "other tokens");
  CHECK(strcmp(told.text, plain.text) == 0 && !told.bad,
        "another text, or alternatives out of order");
  for (int i = 0; i < told.tokens; i++)
    CHECK(told.logprobs[i] <= 0 && told.logprobs[i] > -log(160) - 1e-9, "greedy, of 160 ids: %g",
          told.logprobs[i]);

  how = (pyr_generate_options){ .max_tokens = 20, .on_token = on_token, .ud = &some };
  OK(host, pyr_host_generate(host, "the quick brown fox", &how));
  pyr_host_get_stats(host, &stats);
  CHECK(some.tokens == 3 && strcmp(stats.finish, "closed") == 0, "%d tokens, %s", some.tokens,
        stats.finish);

  char first[3] = { plain.text[5], plain.text[6], 0 },
      second[3] = { plain.text[2], plain.text[3], 0 };
  const char *const stops[] = { first, second, NULL };
  answer cut = { 0 };
  how = (pyr_generate_options){ .max_tokens = 20, .stop = "no such text", .stops = stops,
                                .on_token = on_token, .ud = &cut };
  OK(host, pyr_host_generate(host, "the quick brown fox", &how));
  pyr_host_get_stats(host, &stats);
  CHECK(strcmp(stats.finish, "stop") == 0, "%s", stats.finish);
  CHECK(cut.length <= 2 && memcmp(cut.text, plain.text, cut.length) == 0, "'%s' of '%s'", cut.text,
        plain.text);

  int64_t count = -1, with_zero = -1;
  OK(host, pyr_host_count_tokens(host, "the quick brown fox", 0, &count));
  pyr_host_get_stats(host, &stats);
  CHECK(count == stats.prompt_tokens, "%d, %d", (int)count, (int)stats.prompt_tokens);
  OK(host, pyr_host_count_tokens(host, "ab\0ab", 5, &with_zero));
  OK(host, pyr_host_count_tokens(host, "ab", 0, &count));
  CHECK(with_zero >= 2 * count, "%d, %d", (int)with_zero, (int)count);
  CHECK(pyr_host_count_tokens(host, NULL, 0, &count) == PYR_ARGUMENT && *pyr_host_error(host),
        "no text");
  CHECK(pyr_host_count_tokens(NULL, "a", 0, &count) == PYR_ARGUMENT, "no host");
  CHECK(pyr_host_context(host) > 0 && pyr_host_context(NULL) == 0, "%d",
        (int)pyr_host_context(host));

  /* bytes that are no UTF-8, and zero bytes */
  how = (pyr_generate_options){ .max_tokens = 3, .prompt_length = 9 };
  pyr_status status = pyr_host_generate(host, "a\xff\xfe\0\xc3(b\xf0\x9f", &how);
  CHECK(status == PYR_OK || *pyr_host_error(host), "no message");
  how = (pyr_generate_options){ .alternatives = PYR_ALTERNATIVES + 1 };
  CHECK(pyr_host_generate(host, "a", &how) == PYR_ARGUMENT, "too many alternatives");
  pyr_host_close(host);
}

/* ---- versions -------------------------------------------------------------------------------- */

static void check_versions(void) {
  CHECK(strcmp(pyr_version(), PYR_VERSION) == 0, "%s", pyr_version());
  pyr_host *host;
  struct { pyr_host_options known; const char *later[3]; } newer = { .known = { .threads = 1,
      .policy = "nonesuch" } };
  newer.known.size = sizeof newer;
  /* the tail is zero */
  CHECK(pyr_host_open(model, &newer.known, &host) == PYR_POLICY, "%s", pyr_host_error(host));
  pyr_host_close(host);
  newer.later[2] = "something";
  CHECK(pyr_host_open(model, &newer.known, &host) == PYR_ARGUMENT, "the tail is not");
  CHECK(strstr(pyr_host_error(host), "too old"), "%s", pyr_host_error(host));
  pyr_host_close(host);
  pyr_host_options older = { .size = offsetof(pyr_host_options, policy), .threads = 1,
                             .policy = "nonesuch" };
  OK(host, pyr_host_open(model, &older, &host));  /* it knows no policy */
  pyr_host_close(host);
  older.size = 2;
  CHECK(pyr_host_open(model, &older, &host) == PYR_ARGUMENT
        && strstr(pyr_host_error(host), "size"), "%s", pyr_host_error(host));
  pyr_host_close(host);
  older.size = (size_t)-1;
  CHECK(pyr_host_open(model, &older, &host) == PYR_ARGUMENT
        && strstr(pyr_host_error(host), "size"), "%s", pyr_host_error(host));
  pyr_host_close(host);

  /* every option that a host without Lua can set reaches what it is for */
  pyr_host_options options = { .device = "cpu", .threads = 1, .weights = "f16", .precision = "f32",
                               .context = 64, .cache_dtype = "f32",
                                   .cache_budget = (size_t)1 << 20,
                                       .memory_limit = (size_t)1 << 28 };
  OK(host, pyr_host_open(model, &options, &host));
  CHECK(pyr_host_context(host) == 64, "%d", (int)pyr_host_context(host));
  pyr_generate_options long_one = { .max_tokens = 1000,
                                    .sampler = { .temperature = 1, .seed = 3 } };
  OK(host, pyr_host_generate(host, "hello", &long_one));
  pyr_host_stats stats;
  pyr_host_get_stats(host, &stats);
  CHECK(strcmp(stats.finish, "context") == 0 || strcmp(stats.finish, "eos") == 0, "%s",
        stats.finish);
  CHECK(stats.context_tokens <= 64, "%d", (int)stats.context_tokens);
  pyr_host_close(host);
  options = (pyr_host_options){ .device = "nonesuch" };
  CHECK(pyr_host_open(model, &options, &host) == PYR_DEVICE
        && strstr(pyr_host_error(host), "nonesuch"), "%s", pyr_host_error(host));
  pyr_host_close(host);
  options = (pyr_host_options){ .scaling = "nonesuch" };
  CHECK(pyr_host_open(model, &options, &host) == PYR_ARGUMENT && *pyr_host_error(host), "%s",
        pyr_host_error(host));
  pyr_host_close(host);

  host = open_host(NULL);
  pyr_generate_options how = { .size = 3 };
  CHECK(pyr_host_generate(host, "a", &how) == PYR_ARGUMENT && strstr(pyr_host_error(host), "size"),
        "%s", pyr_host_error(host));
  how = (pyr_generate_options){ .sampler = { .reserved = { 0, 0, 1 } } };
  CHECK(pyr_host_generate(host, "a", &how) == PYR_ARGUMENT
        && strstr(pyr_host_error(host), "reserved"), "%s", pyr_host_error(host));
  pyr_conversation *talk = NULL;
  pyr_conversation_options odd_talk = { .size = 1 };
  CHECK(pyr_conversation_open(host, &odd_talk, &talk) == PYR_ARGUMENT && talk == NULL, "%s",
        pyr_host_error(host));
  pyr_host_close(host);

  char why[200] = "";
  pyr_runtime *rt = NULL;
  pyr_runtime_options runtime = { .size = sizeof runtime + 1, .threads = 1, .why = why,
                                  .why_bytes = sizeof why };
  struct { pyr_runtime_options known; int64_t later; } longer = { runtime, 7 };
  longer.known.size = sizeof longer;
  CHECK(pyr_runtime_new(&longer.known, &rt) == PYR_ARGUMENT && strstr(why, "too old"), "%s", why);
  longer.later = 0;
  CHECK(pyr_runtime_new(&longer.known, &rt) == PYR_OK, "%s", why);
  pyr_sampler *sampler = NULL;
  pyr_sampler_options odd = { .reserved = { 1 } };
  CHECK(pyr_sampler_new(rt, &odd, &sampler) == PYR_ARGUMENT, "reserved");
  pyr_runtime_free(rt);
}

/* ---- reading weights, and progress ----------------------------------------------------------- */

/* Whether a file of this name is mapped into the process. */
static int is_mapped(const char *name) {
  FILE *maps = fopen("/proc/self/maps", "r");
  char line[4096];
  int found = 0;
  while (maps && fgets(line, sizeof line, maps)) found |= strstr(line, name) != NULL;
  if (maps) fclose(maps);
  return found;
}

static void check_reading(void) {
  static answer out[2];
  for (int read = 0; read < 2; read++) {
    pyr_host *host;
    pyr_host_options options = { .threads = 1, .read_weights = read };
    OK(host, pyr_host_open(model, &options, &host));
    if (access("/proc/self/maps", R_OK) == 0)
      CHECK(is_mapped("/model.safetensors") == !read, "read_weights = %d", read);
    pyr_generate_options how = { .max_tokens = 20, .on_token = on_token, .ud = &out[read] };
    OK(host, pyr_host_generate(host, "the quick brown fox", &how));
    pyr_host_close(host);
  }
  CHECK(out[0].tokens > 1 && strcmp(out[0].text, out[1].text) == 0, "'%s', not '%s'", out[1].text,
        out[0].text);
}

typedef struct reading { int told, tokens, late; } reading;

static int tell_progress(void *ud, int64_t done, int64_t total) {
  reading *r = ud;
  CHECK(done >= 0 && done <= total, "%d of %d", (int)done, (int)total);
  r->told++;
  r->late += r->tokens > 0;
  return 0;
}

static int count_token(void *ud, const pyr_token *token) {
  (void)token;
  ((reading *)ud)->tokens++;
  return 0;
}

/* Progress is of reading: a policy that thinks long between two tokens does not tell it again. */
static void check_progress(void) {
  char path[4096];
  snprintf(path, sizeof path, "%s/thinks.lua", folder);
  FILE *file = fopen(path, "w");
  fputs("return { name = 'thinks', trigger = function() return { every = 2, window = 2 } end, "
        "decode = function(o, l)\n"
        "  local ends = os.clock() + 0.1 while os.clock() < ends do end return { keep = "
        "l.waiting } end }\n", file);
  fclose(file);
  pyr_host *host = open_host(path);
  for (int talks = 0; talks < 2; talks++) {
    reading r = { 0 };
    pyr_conversation *talk = talks ? open_talk(host, NULL) : NULL;
    pyr_generate_options how = { .max_tokens = 8, .on_token = count_token,
                                 .on_progress = tell_progress, .ud = &r };
    OK(host, talk ? pyr_conversation_say(talk, "hello", &how)
       : pyr_host_generate(host, "the quick brown fox", &how));
    CHECK(r.told > 0 && r.tokens > 4 && r.late == 0, "told %d times, %d of them late, %d tokens",
          r.told, r.late, r.tokens);
    pyr_conversation_close(talk);
  }
  pyr_host_close(host);
}

/* ---- conversations --------------------------------------------------------------------------- */

static void check_conversation(const char *policy) {
  pyr_host *host = open_host(policy);
  pyr_conversation *talk = open_talk(host, "be brief"), *other = NULL, *loaded = NULL;
  answer one = { 0 }, two = { 0 }, again = { 0 }, forked = { 0 }, whole = { 0 };
  pyr_host_stats first = say(host, talk, "hello there", 12, &one),
      second = say(host, talk, "and more", 12, &two);
  CHECK(second.rereads == 0 && first.rereads == 0, "%d", (int)second.rereads);
  CHECK(second.prompt_tokens < first.prompt_tokens + second.generated_tokens,
        "%d then %d were new", (int)first.prompt_tokens, (int)second.prompt_tokens);
  CHECK(second.context_tokens >= first.context_tokens + second.prompt_tokens, "%d",
        (int)second.context_tokens);

  static const char *const roles[] = { "system", "user", "assistant", "user", "assistant" };
  pyr_message message;
  for (int i = 0; i < 5; i++) {
    OK(host, pyr_conversation_get(talk, i, &message));
    CHECK(strcmp(message.role, roles[i]) == 0 && strlen(message.text) == message.length, "%d: %s",
          i, message.role);
    if (i == 3) CHECK(strcmp(message.text, "and more") == 0, "%s", message.text);
  }
  CHECK(pyr_conversation_get(talk, 5, &message) == PYR_ARGUMENT
        && pyr_conversation_get(talk, -1, &message) == PYR_ARGUMENT, "5");

  /* a fork goes its own way, the first stays where it was */
  OK(host, pyr_conversation_fork(talk, &other));
  say(host, other, "elsewhere", 12, &forked);
  OK(host, pyr_conversation_get(other, 5, &message));
  CHECK(strcmp(message.text, "elsewhere") == 0, "%s", message.text);
  CHECK(pyr_conversation_get(talk, 5, &message) == PYR_ARGUMENT, "the fork's messages");

  /* a saved one goes on as the one it was saved from, in another host */
  char path[4096];
  snprintf(path, sizeof path, "%s/talk.bin", folder);
  OK(host, pyr_conversation_save(talk, path));
  pyr_host *fresh = open_host(policy);
  OK(fresh, pyr_conversation_load(fresh, path, NULL, &loaded));
  OK(fresh, pyr_conversation_get(loaded, 4, &message));
  CHECK(strcmp(message.role, "assistant") == 0, "%s", message.role);
  pyr_host_stats third = say(fresh, loaded, "once more", 12, &again),
      mine = say(host, talk, "once more", 12, &whole);
  CHECK(third.rereads == 0 && third.prompt_tokens == mine.prompt_tokens, "%d, %d",
        (int)third.prompt_tokens, (int)mine.prompt_tokens);
  CHECK(strcmp(again.text, whole.text) == 0, "'%s', not '%s'", again.text, whole.text);
  CHECK(again.tokens == whole.tokens && memcmp(again.ids, whole.ids,
                                               (size_t)whole.tokens * sizeof *whole.ids) == 0,
                                                   "ids");
  CHECK(pyr_conversation_load(fresh, "/nowhere/talk", NULL, &loaded) == PYR_IO, "%s",
        pyr_host_error(fresh));
  pyr_host_close(fresh);                        /* before its conversation */
  OK(fresh, pyr_conversation_get(loaded, 0, &message));
  pyr_conversation_close(loaded);

  /* messages added by hand, then answered */
  pyr_conversation *led = open_talk(host, NULL);
  pyr_message turn = { .role = "user", .text = "hello there" };
  OK(host, pyr_conversation_add(led, &turn));
  turn = (pyr_message){ .role = "assistant", .text = "yes\0no", .length = 6 };
  OK(host, pyr_conversation_add(led, &turn));
  OK(host, pyr_conversation_get(led, 1, &message));
  CHECK(message.length == 6 && message.text[4] == 'n', "%d", (int)message.length);
  turn = (pyr_message){ .role = "user", .text = "go on" };
  OK(host, pyr_conversation_add(led, &turn));
  answer led_answer = { 0 };
  say(host, led, NULL, 6, &led_answer);
  CHECK(led_answer.tokens > 0, "no answer");
  CHECK(pyr_conversation_add(led, NULL) == PYR_ARGUMENT
        && pyr_conversation_add(led, &(pyr_message){ .role = "user" }) == PYR_ARGUMENT, "no text");
  pyr_conversation_close(led);

  pyr_conversation_close(other);
  pyr_host_close(host);
  pyr_conversation_close(talk);                 /* after its host */
}

/* ---- messages, tools, rows ------------------------------------------------------------------- */

#define HELLO "[{\"role\": \"user\", \"content\": \"hello\"}]"

/* What a template is given, by what it makes of it. */
static void check_rendered(pyr_host *host, const char *template, const char *messages,
                           const char *tools, int thinking, const char *variables,
                               const char *wanted) {
  pyr_generate_options how = { .size = sizeof how, .thinking = thinking, .format = template,
                               .variables = variables };
  const char *text = "";
  size_t length = 0;
  OK(host, pyr_host_render(host, messages, tools, &how, &text, &length));
  CHECK(strcmp(text, wanted) == 0 && length == strlen(wanted), "'%s'", text);
}

static void check_chat(void) {
  pyr_host *host = open_host("h2o");
  pyr_conversation *talk = open_talk(host, NULL);
  answer chat = { 0 }, turn = { 0 };
  pyr_generate_options how = { .max_tokens = 8, .on_token = on_token, .ud = &chat };
  OK(host, pyr_host_generate_chat(host, HELLO, NULL, &how));
  say(host, talk, "hello", 8, &turn);
  CHECK(chat.tokens > 3 && chat.tokens == turn.tokens && strcmp(chat.text, turn.text) == 0,
        "'%s', '%s'", chat.text, turn.text);

  /* objects in the order of their keys, whichever that is */
  check_rendered(host, "{{ tools | tojson }} {{ messages[0].content }}", HELLO,
                 "[{\"zeta\": 1, \"alpha\": {}, \"name\": []}]", 0, NULL,
                 "[{\"zeta\": 1, \"alpha\": {}, \"name\": []}] hello");
  /* a description alone is put where templates look for it */
  check_rendered(host, "{{ tools[0].type }} {{ tools[0].function.name }}", HELLO,
                 "[{\"name\": \"f\", \"parameters\": {}}]", 0, NULL, "function f");
  check_rendered(host, "{{ enable_thinking is defined }}", HELLO, NULL, 0, NULL, "False");
  check_rendered(host, "{{ enable_thinking }}", HELLO, NULL, -1, NULL, "False");
  check_rendered(host, "{{ thinking }} {{ mood.x }}", HELLO, NULL, 1, "{\"mood\": {\"x\": 5}}",
                 "True 5");
  check_rendered(host, "{% for m in messages %}{{ m.role }}{{ m.tool_calls | length }}"
                 "{{ m.content is none }};{% endfor %}",
                 "[{\"role\": \"assistant\", \"content\": null, \"tool_calls\": [{}]},"
                 "{\"role\": \"tool\", \"content\": [{\"type\": \"text\"}]}]", NULL, 0, NULL,
                 "assistant1True;tool0False;");

  const char *text;
  static const struct { const char *messages, *tools, *variables; pyr_status status; } wrong[] = {
    { NULL, NULL, NULL, PYR_ARGUMENT }, { "[]", NULL, NULL, PYR_ARGUMENT },
    { "{}", NULL, NULL, PYR_ARGUMENT }, { "hello", NULL, NULL, PYR_FORMAT },
    { "", NULL, NULL, PYR_FORMAT }, { "null", NULL, NULL, PYR_ARGUMENT },
    { "[5]", NULL, NULL, PYR_ARGUMENT }, { "[{\"role\": \"user\"}]", NULL, NULL, PYR_ARGUMENT },
    { HELLO, "{}", NULL, PYR_ARGUMENT }, { HELLO, "[", NULL, PYR_FORMAT },
    { HELLO, NULL, "[1]", PYR_ARGUMENT }, { HELLO, NULL, "{", PYR_FORMAT },
  };
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    pyr_generate_options o = { .size = sizeof o, .max_tokens = 1, .variables = wrong[i].variables };
    pyr_status status = pyr_host_generate_chat(host, wrong[i].messages, wrong[i].tools, &o);
    CHECK(status == wrong[i].status && *pyr_host_error(host), "%d: %s", (int)i,
          pyr_status_name(status));
    status = pyr_host_render(host, wrong[i].messages, wrong[i].tools, &o, &text, NULL);
    CHECK(status == wrong[i].status, "%d: %s", (int)i, pyr_status_name(status));
  }
  CHECK(pyr_host_render(host, HELLO, NULL, NULL, NULL, NULL) == PYR_ARGUMENT, "nowhere");
  how = (pyr_generate_options){ .size = sizeof how, .format = "chatml" };
  CHECK(pyr_host_generate(host, "hello", &how) == PYR_ARGUMENT, "a format without messages");
  how = (pyr_generate_options){ .plain = 1 };
  CHECK(pyr_host_generate_chat(host, HELLO, NULL, &how) == PYR_ARGUMENT, "plain messages");

  /* a conversation that knows tools, and what they answered */
  pyr_conversation_options options = { .size = sizeof options,
    .format = "{{ tools | length }}{% for m in messages %}<{{ m.role }}{{ m.name }}:"
              "{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}"
              "{% endif %}>{% endfor %}", .tools = "[{}, {}]" };
  pyr_conversation *with_tools = NULL;
  OK(host, pyr_conversation_open(host, &options, &with_tools));
  OK(host, pyr_conversation_add_json(with_tools, "{\"role\": \"tool\", \"name\": \"f\", "
                                     "\"content\": [{\"type\": \"text\", \"text\": \"5\"}]}"));
  CHECK(pyr_conversation_add_json(with_tools, "[]") == PYR_ARGUMENT
        && pyr_conversation_add_json(with_tools, "{") == PYR_FORMAT
        && pyr_conversation_add_json(with_tools, "{\"role\": 5}") == PYR_ARGUMENT
        && pyr_conversation_add_json(with_tools, NULL) == PYR_ARGUMENT
        && pyr_conversation_add_json(NULL, "{}") == PYR_ARGUMENT, "no message");
  pyr_message message;
  OK(host, pyr_conversation_get(with_tools, 0, &message));
  CHECK(strcmp(message.role, "tool") == 0
        && strcmp(message.text, "[{\"text\":\"5\",\"type\":\"text\"}]") == 0, "%s", message.text);
  turn = (answer){ 0 };
  pyr_host_stats stats = say(host, with_tools, NULL, 3, &turn);
  int64_t count = 0;
  OK(host, pyr_host_count_tokens(host, "2<toolf:5>", 0, &count));
  CHECK(stats.prompt_tokens == count, "%d", (int)stats.prompt_tokens);
  pyr_conversation *odd = NULL;
  options.tools = "{}";
  CHECK(pyr_conversation_open(host, &options, &odd) == PYR_ARGUMENT && odd == NULL, "no list");
  pyr_conversation_close(with_tools);
  pyr_conversation_close(talk);
  pyr_host_close(host);
}

static void check_parts(void) {
  pyr_host *host = open_host(NULL);
  int64_t width = pyr_host_width(host), count = 0, again = 0;
  float rows[64 * 64];
  answer whole = { 0 }, mixed = { 0 };
  CHECK(width > 0 && width <= 64 && pyr_host_width(NULL) == 0, "%d", (int)width);
  /* texts alone are one text, also for what a penalty has seen */
  pyr_generate_options how = { .max_tokens = 12, .sampler = { .repeat_penalty = 1.5f },
                               .on_token = on_token, .ud = &whole };
  pyr_part texts[] = { { .text = "hello there," }, { .text = " you" } };
  OK(host, pyr_host_generate(host, "hello there, you", &how));
  how.ud = &mixed;
  OK(host, pyr_host_generate_parts(host, texts, 2, &how));
  CHECK(mixed.tokens == whole.tokens && strcmp(mixed.text, whole.text) == 0, "'%s', '%s'",
        mixed.text, whole.text);

  OK(host, pyr_host_embed(host, " there,", 0, rows, 64, &count));
  CHECK(count > 2, "%d", (int)count);
  pyr_part parts[] = { { .text = "hello" }, { .rows = rows, .count = count }, { .text = "" },
                       { .text = " you???", .length = 4 } };
  how = (pyr_generate_options){ .max_tokens = 12, .on_token = on_token, .ud = &whole };
  whole = mixed = (answer){ 0 };
  OK(host, pyr_host_generate(host, "hello there, you", &how));
  how.ud = &mixed;
  OK(host, pyr_host_generate_parts(host, parts, 4, &how));
  CHECK(mixed.tokens == whole.tokens && strcmp(mixed.text, whole.text) == 0, "'%s', '%s'",
        mixed.text, whole.text);
  pyr_host_stats stats;
  pyr_host_get_stats(host, &stats);
  OK(host, pyr_host_count_tokens(host, "hello there, you", 0, &again));
  CHECK(stats.prompt_tokens == again, "%d, %d", (int)stats.prompt_tokens, (int)again);

  rows[width + 1] = NAN;
  CHECK(pyr_host_generate_parts(host, parts, 4, &how) == PYR_ARGUMENT
        && strstr(pyr_host_error(host), "embedding 2 is not finite"), "%s", pyr_host_error(host));
  CHECK(pyr_host_generate_parts(host, parts, 0, &how) == PYR_ARGUMENT
        && pyr_host_generate_parts(host, NULL, 1, &how) == PYR_ARGUMENT
        && pyr_host_generate_parts(NULL, parts, 1, &how) == PYR_ARGUMENT
        && pyr_host_generate_parts(host, &parts[2], 1, &how) == PYR_ARGUMENT, "no parts");
  pyr_part odd[] = { { .text = "a", .rows = rows }, { 0 }, { .rows = rows, .count = -1 },
                     { .rows = rows, .count = (int64_t)1 << 60 } };
  for (int i = 0; i < 4; i++)
    CHECK(pyr_host_generate_parts(host, odd + i, 1, &how) == PYR_ARGUMENT, "%d", i);
  again = 0;
  CHECK(pyr_host_embed(host, " there,", 0, NULL, 0, &again) == PYR_ARGUMENT && again == count,
        "%d", (int)again);
  CHECK(pyr_host_embed(host, NULL, 0, rows, 64, &again) == PYR_ARGUMENT
        && pyr_host_embed(host, "a", 0, rows, 64, NULL) == PYR_ARGUMENT
        && pyr_host_embed(NULL, "a", 0, rows, 64, &again) == PYR_ARGUMENT, "NULL");
  pyr_host_close(host);
}

static void check_arguments(void) {
  pyr_host *host = open_host(NULL);
  pyr_conversation *talk = NULL;
  pyr_message message;
  CHECK(pyr_conversation_open(NULL, NULL, &talk) == PYR_ARGUMENT
        && pyr_conversation_open(host, NULL, NULL) == PYR_ARGUMENT, "NULL");
  CHECK(pyr_conversation_load(host, NULL, NULL, &talk) == PYR_ARGUMENT
        && pyr_conversation_load(NULL, "x", NULL, &talk) == PYR_ARGUMENT, "NULL");
  CHECK(pyr_conversation_say(NULL, "a", NULL) == PYR_ARGUMENT
        && pyr_conversation_save(NULL, "x") == PYR_ARGUMENT, "NULL");
  CHECK(pyr_conversation_fork(NULL, &talk) == PYR_ARGUMENT
        && pyr_conversation_get(NULL, 0, &message) == PYR_ARGUMENT, "NULL");
  pyr_conversation_close(NULL);
  pyr_host_cancel(NULL);
  pyr_conversation_options odd = { .format = "no such format" };
  CHECK(pyr_conversation_open(host, &odd, &talk) == PYR_UNSUPPORTED && talk == NULL, "%s",
        pyr_host_error(host));
  talk = open_talk(host, NULL);
  CHECK(pyr_conversation_say(talk, NULL, NULL) == PYR_ARGUMENT && *pyr_host_error(host),
        "nothing to answer");
  CHECK(pyr_conversation_save(talk, NULL) == PYR_ARGUMENT, "no path");
  CHECK(pyr_conversation_save(talk, "/nowhere/at/all") == PYR_IO, "%s", pyr_host_error(host));
  CHECK(pyr_conversation_fork(talk, NULL) == PYR_ARGUMENT, "nowhere");
  pyr_conversation_close(talk);
  pyr_host_close(host);
}

/* ---- cancelling, and closing inside ---------------------------------------------------------- */

static pyr_host *interrupted;
static void interrupt(int signal) { (void)signal; pyr_host_cancel(interrupted); }

static void *cancel_soon(void *host) {
  usleep(100000);
  pyr_host_cancel(host);
  return NULL;
}

static void check_cancelling(void) {
  pyr_host *host = open_host("pyramidinfer");
  pyr_conversation *talk = open_talk(host, NULL);
  answer before = { 0 }, lost = { .host = host, .cancel_after = 3 }, after = { 0 };
  say(host, talk, "hello", 8, &before);
  pyr_generate_options how = { .max_tokens = 100, .on_token = on_token, .ud = &lost };
  CHECK(pyr_conversation_say(talk, "stop me", &how) == PYR_CANCELLED, "%s", pyr_host_error(host));
  CHECK(lost.tokens == 3, "%d tokens", lost.tokens);
  pyr_message message;
  CHECK(pyr_conversation_get(talk, 2, &message) == PYR_ARGUMENT, "what was given up stays");
  pyr_host_stats stats = say(host, talk, "again", 8, &after);
  CHECK(after.tokens > 0 && stats.rereads == 1, "%d", (int)stats.rereads);
  pyr_host_cancel(host);                        /* nothing runs: nothing happens */
  say(host, talk, "further", 4, &after);
  lost = (answer){ .host = host, .cancel_after = 2 };
  CHECK(pyr_host_generate(host, "hello", &how) == PYR_CANCELLED
        && strcmp(pyr_host_error(host), "cancelled") == 0, "%s", pyr_host_error(host));
  pyr_conversation_close(talk);
  pyr_host_close(host);

  char endless[4096];
  snprintf(endless, sizeof endless, "%s/endless.lua", folder);
  FILE *written = fopen(endless, "w");
  fputs("return { name = 'endless', prefill = function() while true do end end }\n", written);
  fclose(written);
  pyr_host_options limited = { .threads = 1, .policy = endless, .policy_seconds = 0.05 };
  OK(host, pyr_host_open(model, &limited, &host));
  CHECK(pyr_host_generate(host, "hello", NULL) == PYR_POLICY
        && strstr(pyr_host_error(host), "policy_seconds"), "%s", pyr_host_error(host));
  talk = open_talk(host, NULL);
  CHECK(pyr_conversation_say(talk, "hello", NULL) == PYR_POLICY
        && strstr(pyr_host_error(host), "policy_seconds"), "%s", pyr_host_error(host));
  pyr_conversation_close(talk);
  pyr_host_close(host);

  /* a policy that never returns, and one that catches what ends it */
  static const char *const loops[] = { "while true do end",
                                       "while true do pcall(function() while true do end end) end",
                                           "local go = coroutine.wrap(function() while true do "
                                           "end end) go()" };
  for (int i = 0; i < 3; i++) {
    char path[4096];
    snprintf(path, sizeof path, "%s/loop%d.lua", folder, i);
    FILE *file = fopen(path, "w");
    fprintf(file, "return { name = 'loop', prefill = function(o, l) %s return nil end }\n",
            loops[i]);
    fclose(file);
    host = open_host(path);
    pthread_t thread;
    if (i == 0) {
      interrupted = host;
      signal(SIGALRM, interrupt);
      alarm(1);
    } else {
      CHECK(pthread_create(&thread, NULL, cancel_soon, host) == 0, "no thread");
    }
    CHECK(pyr_host_generate(host, "hello", NULL) == PYR_CANCELLED, "%s", pyr_host_error(host));
    if (i) pthread_join(thread, NULL);
    pyr_host_close(host);
  }
}

static void check_closing_inside(void) {
  pyr_host *host = open_host(NULL);
  pyr_conversation *talk = open_talk(host, NULL);
  answer out = { .close_talk = talk };
  pyr_generate_options how = { .max_tokens = 50, .on_token = on_token, .ud = &out };
  CHECK(pyr_conversation_say(talk, "hello", &how) == PYR_CANCELLED, "%s", pyr_host_error(host));
  CHECK(out.tokens == 2, "%d tokens", out.tokens);
  out = (answer){ .close_host = host };
  talk = open_talk(host, NULL);
  CHECK(pyr_host_generate(host, "hello", &how) == PYR_CANCELLED, "closed");
  out = (answer){ .close_talk = talk };         /* the last handle of all */
  CHECK(pyr_conversation_say(talk, "hello", &how) == PYR_CANCELLED, "closed");
  host = open_host(NULL);
  out = (answer){ .close_host = host };
  CHECK(pyr_host_generate(host, "hello", &how) == PYR_CANCELLED, "closed");
}

static void *close_elsewhere(void *host) {
  pyr_host_close(host);
  return NULL;
}

static void *talk_alone(void *ud) {
  for (int i = 0; i < 2; i++) {
    pyr_host *host = open_host("pyramidinfer");
    pyr_conversation *talk = open_talk(host, "be brief");
    *(answer *)ud = (answer){ 0 };
    say(host, talk, "hello there", 8, ud);
    say(host, talk, "and more", 8, ud);
    pyr_conversation_close(talk);
    pyr_host_close(host);
  }
  return NULL;
}

static void check_threads(void) {
  static answer out[2];
  pthread_t threads[2];
  for (int i = 0; i < 2; i++)
    CHECK(pthread_create(&threads[i], NULL, talk_alone, &out[i]) == 0, "no thread");
  for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
  CHECK(strcmp(out[0].text, out[1].text) == 0, "two threads, two texts");
  pyr_host *host = open_host(NULL);
  CHECK(pthread_create(&threads[0], NULL, close_elsewhere, host) == 0, "no thread");
  pthread_join(threads[0], NULL);
}

static void check_memory(void) {
  int tries = 0;
  for (size_t limit = 100000; tries < 200; limit += limit / 12, tries++) {
    pyr_host *host;
    pyr_conversation *talk = NULL;
    pyr_host_options options = { .threads = 1, .policy = "pyramidinfer", .memory_limit = limit };
    pyr_generate_options how = { .max_tokens = 4, .alternatives = 3 };
    pyr_status status = pyr_host_open(model, &options, &host);
    if (status == PYR_OK) status = pyr_conversation_open(host, NULL, &talk);
    if (status == PYR_OK) status = pyr_conversation_say(talk, "hello", &how);
    if (status == PYR_OK) status = pyr_conversation_say(talk, "there", &how);
    CHECK(status == PYR_OK || *pyr_host_error(host), "a failure without a message");
    CHECK(status == PYR_OK || status == PYR_MEMORY, "%s: %s", pyr_status_name(status),
          pyr_host_error(host));
    pyr_host_close(host);
    pyr_conversation_close(talk);
    if (status == PYR_OK) break;
  }
  CHECK(tries > 5 && tries < 200, "%d tries", tries);
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  setvbuf(stdout, NULL, _IOLBF, 0);
  model = argv[1];
  folder = argv[2];
  check_tokens();
  check_versions();
  check_reading();
  check_progress();
  check_conversation("full");
  check_conversation("h2o");
  check_chat();
  check_parts();
  check_arguments();
  check_cancelling();
  check_closing_inside();
  check_threads();
  check_memory();
  return failures ? 1 : 0;
}
