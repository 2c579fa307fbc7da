/* host_checks.c MODEL — the facade's edges: wrong arguments, cancelling, nesting, two hosts side by
 * side, want of memory. Prints each check that fails; exits with 0 if none does. Built and run by
 * embedding_spec.lua. */
#include "pyramid.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

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

static const char prompt[] = "the quick brown fox jumps over the lazy dog and runs away";

typedef struct text {
  char bytes[4096];
  size_t length;
  int pieces, stop_after;      /* 0: never */
  pyr_host *other;             /* generates too, at each piece */
  struct text *other_text;
  pyr_status inner;            /* what generating in a callback of the same host gave */
  pyr_host *self;
} text;

static int keep_piece(void *ud, const char *piece, size_t length) {
  text *t = ud;
  CHECK(strlen(piece) == length, "%zu", length);
  if (t->length + length < sizeof t->bytes) {
    memcpy(t->bytes + t->length, piece, length);
    t->length += length;
  }
  t->pieces++;
  if (t->self) t->inner = pyr_host_generate(t->self, "a", NULL);
  if (t->other && t->pieces == 2) {
    pyr_generate_options how = { .max_tokens = 10, .on_piece = keep_piece, .ud = t->other_text };
    CHECK(pyr_host_generate(t->other, prompt, &how) == PYR_OK, "%s", pyr_host_error(t->other));
  }
  return t->pieces == t->stop_after;
}

static int refuse(void *ud, int64_t done, int64_t total) {
  CHECK(done >= 0 && done <= total, "%d of %d", (int)done, (int)total);
  ++*(int *)ud;
  return 1;
}

static pyr_host *open_host(const char *path, const char *policy) {
  pyr_host *host;
  pyr_host_options options = { .threads = 1, .policy = policy };
  CHECK(pyr_host_open(path, &options, &host) == PYR_OK, "%s", pyr_host_error(host));
  return host;
}

static void generate(pyr_host *host, int tokens, text *out) {
  pyr_generate_options how = { .max_tokens = tokens, .on_piece = keep_piece, .ud = out };
  CHECK(pyr_host_generate(host, prompt, &how) == PYR_OK, "%s", pyr_host_error(host));
}

/* ---- the checks ------------------------------------------------------------------------------ */

static void check_open(const char *path, const pyr_host_options *options, pyr_status wanted,
                       const char *word) {
  pyr_host *host;
  pyr_status status = pyr_host_open(path, options, &host);
  CHECK(status == wanted, "%s, not %s: %s", pyr_status_name(status), pyr_status_name(wanted),
        pyr_host_error(host));
  CHECK(strstr(pyr_host_error(host), word), "'%s' is not in: %s", word, pyr_host_error(host));
  CHECK(pyr_host_generate(host, prompt, NULL) == PYR_ARGUMENT, "a host that did not open");
  pyr_host_close(host);
}

static void check_errors(const char *path) {
  pyr_host_close(NULL);
  CHECK(pyr_host_error(NULL), "no text");
  CHECK(pyr_host_generate(NULL, prompt, NULL) == PYR_ARGUMENT, "NULL");
  pyr_host_stats stats;
  pyr_host_get_stats(NULL, &stats);
  CHECK(stats.prompt_tokens == 0, "NULL");

  check_open(NULL, NULL, PYR_ARGUMENT, "path");
  check_open("/nowhere/model", NULL, PYR_IO, "/nowhere/model");
  check_open(path, &(pyr_host_options){ .policy = "nonesuch" }, PYR_POLICY, "pyramidinfer");
  check_open(path, &(pyr_host_options){ .policy = "/nowhere/policy.lua" }, PYR_IO,
             "/nowhere/policy.lua");
  check_open(path, &(pyr_host_options){ .policy = "pyramidinfer", .policy_options = "nonesuch=1" },
             PYR_POLICY, "nonesuch");
  check_open(path, &(pyr_host_options){ .policy = "pyramidinfer", .policy_options = "ratio" },
             PYR_POLICY, "ratio");
  check_open(path, &(pyr_host_options){ .cache_dtype = "nonesuch" }, PYR_ARGUMENT, "nonesuch");
  check_open(path, &(pyr_host_options){ .threads = -1 }, PYR_ARGUMENT, "threads");

  pyr_host *host = open_host(path, NULL);
  CHECK(pyr_host_generate(host, NULL, NULL) == PYR_ARGUMENT, "no prompt");
  pyr_generate_options how = { .max_tokens = -1 };
  CHECK(pyr_host_generate(host, prompt, &how) == PYR_ARGUMENT, "max_tokens");
  how = (pyr_generate_options){ .sampler = { .temperature = -1 } };
  CHECK(pyr_host_generate(host, prompt, &how) == PYR_ARGUMENT, "temperature");
  CHECK(strstr(pyr_host_error(host), "temperature"), "%s", pyr_host_error(host));
  text out = { 0 };
  generate(host, 5, &out);     /* and goes on working */
  CHECK(out.pieces > 0, "no text");
  pyr_host_close(host);
}

static void check_stopping(const char *path) {
  pyr_host *host = open_host(path, "pyramidinfer");
  pyr_host_stats stats;
  int calls = 0;
  pyr_generate_options how = { .max_tokens = 30, .on_progress = refuse, .ud = &calls };
  CHECK(pyr_host_generate(host, prompt, &how) == PYR_CANCELLED, "%s", pyr_host_error(host));
  CHECK(calls == 1, "%d calls", calls);
  CHECK(strstr(pyr_host_error(host), "cancelled"), "%s", pyr_host_error(host));
  pyr_host_get_stats(host, &stats);
  CHECK(stats.generated_tokens == 0, "after a failure");

  text all = { 0 }, some = { .stop_after = 3 };
  generate(host, 30, &all);
  pyr_host_get_stats(host, &stats);
  CHECK(stats.prompt_tokens > 0 && stats.generated_tokens > 3 && stats.generated_tokens <= 30,
        "%d", (int)stats.generated_tokens);
  CHECK(stats.prefill_seconds > 0 && stats.decode_seconds > 0, "no time passed");
  CHECK(stats.cache_bytes > 0 && stats.cache_fraction > 0 && stats.cache_fraction <= 1, "%f",
        stats.cache_fraction);
  generate(host, 30, &some);
  CHECK(some.pieces == 3, "%d pieces", some.pieces);
  CHECK(some.length < all.length && memcmp(some.bytes, all.bytes, some.length) == 0,
        "another text");

  char stop[3] = { all.bytes[4], all.bytes[5], 0 };
  text cut = { 0 };
  how = (pyr_generate_options){ .max_tokens = 30, .stop = stop, .on_piece = keep_piece,
                                .ud = &cut };
  CHECK(pyr_host_generate(host, prompt, &how) == PYR_OK, "%s", pyr_host_error(host));
  all.bytes[all.length] = cut.bytes[cut.length] = 0;
  CHECK(cut.length == (size_t)(strstr(all.bytes, stop) - all.bytes), "'%s' up to '%s' is not '%s'",
        all.bytes, stop, cut.bytes);

  pyr_logit_bias bias[] = { { 5, 1000 }, { 6, -INFINITY } };
  text same = { 0 };
  how = (pyr_generate_options){ .max_tokens = 8, .sampler = { .bias = bias, .bias_count = 2 },
                                .on_piece = keep_piece, .ud = &same };
  CHECK(pyr_host_generate(host, prompt, &how) == PYR_OK, "%s", pyr_host_error(host));
  pyr_host_get_stats(host, &stats);
  CHECK(stats.generated_tokens == 8, "%d", (int)stats.generated_tokens);
  CHECK(same.length > 0 && memcmp(same.bytes, same.bytes + same.length / 8, same.length / 8) == 0,
        "the bias was not heard");
  pyr_host_close(host);
}

static void check_nesting(const char *path) {
  pyr_host *a = open_host(path, NULL), *b = open_host(path, "pyramidinfer");
  text a_alone = { 0 }, b_alone = { 0 }, b_inside = { 0 };
  text a_around = { .other = b, .other_text = &b_inside, .self = a, .inner = PYR_OK };
  generate(a, 12, &a_alone);
  generate(b, 10, &b_alone);
  generate(a, 12, &a_around);
  CHECK(a_alone.length == a_around.length && memcmp(a_alone.bytes, a_around.bytes,
                                                    a_alone.length) == 0, "the outer text changed");
  CHECK(b_alone.length == b_inside.length && memcmp(b_alone.bytes, b_inside.bytes,
                                                    b_alone.length) == 0, "the inner text changed");
  CHECK(a_around.inner == PYR_ARGUMENT, "a host in its own callback");
  pyr_host_close(a);
  text again = { 0 };
  generate(b, 10, &again);
  CHECK(again.length == b_alone.length, "b after a is closed");
  pyr_host_close(b);
}

typedef struct job { const char *path; text out; } job;

static void *run_job(void *ud) {
  job *j = ud;
  for (int i = 0; i < 3; i++) {
    pyr_host *host = open_host(j->path, "pyramidinfer");
    j->out = (text){ 0 };
    generate(host, 20, &j->out);
    pyr_host_close(host);
  }
  return NULL;
}

static void check_threads(const char *path) {
  static job jobs[2];
  pthread_t threads[2];
  for (int i = 0; i < 2; i++) {
    jobs[i].path = path;
    CHECK(pthread_create(&threads[i], NULL, run_job, &jobs[i]) == 0, "thread %d", i);
  }
  for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
  CHECK(jobs[0].out.length == jobs[1].out.length
        && memcmp(jobs[0].out.bytes, jobs[1].out.bytes, jobs[0].out.length) == 0,
            "two threads, two texts");
}

static void check_memory(const char *path) {
  int tries = 0;
  for (size_t limit = 2000;; limit += limit / 8, tries++) {
    pyr_host *host;
    pyr_host_options options = { .threads = 1, .policy = "pyramidinfer", .memory_limit = limit };
    pyr_status status = pyr_host_open(path, &options, &host);
    if (status == PYR_OK) {
      pyr_generate_options how = { .max_tokens = 5 };
      status = pyr_host_generate(host, prompt, &how);
    }
    CHECK(status == PYR_OK || *pyr_host_error(host), "a failure without a message");
    pyr_host_close(host);
    if (status == PYR_OK) break;
    CHECK(limit < (size_t)1 << 32, "it never succeeds");
    if (limit >= (size_t)1 << 32) break;
  }
  CHECK(tries > 10, "%d tries: the limit is not honoured", tries);
}

int main(int argc, char **argv) {
  if (argc < 2) return 2;
  check_errors(argv[1]);
  check_stopping(argv[1]);
  check_nesting(argv[1]);
  check_threads(argv[1]);
  check_memory(argv[1]);
  return failures ? 1 : 0;
}
