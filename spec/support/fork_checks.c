/* fork_checks.c — a server that loads a model, then forks workers: fork_checks MODEL. A worker
 * closes what it has, or uses it first. Prints what went wrong, and exits 1 then. A worker that
 * waits for threads which stayed in the parent is ended by its alarm. */
#include <pyramid.h>

#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SECONDS = 60 };

typedef struct text { char bytes[4096]; size_t length; } text;

static int take(void *ud, const char *piece, size_t length) {
  text *t = ud;
  if (t->length + length < sizeof t->bytes)
    memcpy(t->bytes + t->length, piece, length), t->length += length;
  return 0;
}

static pyr_status generate(pyr_host *host, text *out) {
  memset(out, 0, sizeof *out);
  pyr_generate_options how = { .max_tokens = 12, .on_piece = take, .ud = out };
  return pyr_host_generate(host, "hello world, hello", &how);
}

/* 0: all is well; else what the worker's exit status was, or 1 if a signal ended it. */
static int in_child(pyr_host *host, int uses, const text *want) {
  pid_t child = fork();
  if (child == 0) {
    text got;
    alarm(SECONDS);
    int wrong = uses && (generate(host, &got) != PYR_OK || strcmp(got.bytes, want->bytes) != 0) ? 2
        : 0;
    pyr_host_close(host);
    _exit(wrong);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child) return 3;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

int main(int argc, char **argv) {
  int failed = 0;
  for (int threads = 1; argc > 1 && threads <= 3; threads++) {
    pyr_host *host;
    text before, after;
    pyr_host_options options = { .threads = threads };
    if (pyr_host_open(argv[1], &options, &host) != PYR_OK || generate(host, &before) != PYR_OK) {
      printf("%d threads: %s\n", threads, pyr_host_error(host));
      return 1;
    }
    for (int uses = 0; uses < 2; uses++) {
      int wrong = in_child(host, uses, &before);
      if (wrong)
        printf("%d threads: a child that %s: %d\n", threads, uses ? "generates" : "closes", wrong),
            failed = 1;
    }
    if (generate(host, &after) != PYR_OK || strcmp(before.bytes, after.bytes) != 0)
      printf("%d threads: the parent, afterwards: %s\n", threads, pyr_host_error(host)), failed = 1;
    pyr_host_close(host);
  }
  return argc > 1 ? failed : 1;
}
