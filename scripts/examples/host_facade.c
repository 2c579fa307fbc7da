/* host_facade.c — a host that wants text and knows nothing of Lua.
 *
 *     cc host_facade.c $(pkg-config --cflags --libs pyramid) -o host_facade
 *     ./host_facade models/tiny "Once upon a time" pyramidinfer "ratio=0.8 recent=0.1"
 *
 * Ctrl-C stops a long prompt or a long answer, not the program. */
#include <pyramid.h>

#include <signal.h>
#include <stdio.h>

static volatile sig_atomic_t interrupted;

static void interrupt(int signal) {
  (void)signal;
  interrupted = 1;
}

static int print_piece(void *ud, const char *piece, size_t length) {
  fwrite(piece, 1, length, ud);
  fflush(ud);
  return interrupted;
}

static int show_progress(void *ud, int64_t done, int64_t total) {
  (void)ud;
  fprintf(stderr, "\rreading the prompt: %d %%", (int)(total ? 100 * done / total : 100));
  if (done == total) fputc('\n', stderr);
  return interrupted;
}

int main(int argc, char **argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: %s MODEL PROMPT [POLICY [OPTIONS]]\n", argv[0]);
    return 2;
  }
  signal(SIGINT, interrupt);

  pyr_host *host;
  pyr_host_options options = { .policy = argc > 3 ? argv[3] : NULL,
                               .policy_options = argc > 4 ? argv[4] : NULL };
  pyr_status status = pyr_host_open(argv[1], &options, &host);
  if (status != PYR_OK) goto done;

  pyr_generate_options how = {
    .max_tokens = 40,
    .sampler = { .temperature = 0.8f, .top_k = 40, .seed = 1 },
    .on_piece = print_piece, .on_progress = show_progress, .ud = stdout,
  };
  status = pyr_host_generate(host, argv[2], &how);
  if (status != PYR_OK) goto done;

  pyr_host_stats stats;
  pyr_host_get_stats(host, &stats);
  printf("\n%lld + %lld tokens, %.0f tokens/s, %zu bytes of cache, %.0f %% of the rows\n",
         (long long)stats.prompt_tokens, (long long)stats.generated_tokens,
             (double)stats.generated_tokens / (stats.decode_seconds + 1e-9), stats.cache_bytes,
                 100 * stats.cache_fraction);
done:
  if (status != PYR_OK)
    fprintf(stderr, "\n%s: %s\n", pyr_status_name(status), pyr_host_error(host));
  pyr_host_close(host);
  return status == PYR_OK ? 0 : 1;
}
