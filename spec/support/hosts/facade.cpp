// facade.cpp MODEL — a host in C++17. Prints a text.
#include "pyramid.h"

#include <cstdio>
#include <memory>
#include <string>
#include <string_view>

struct close_host { void operator()(pyr_host *host) const { pyr_host_close(host); } };

int main(int argc, char **argv) {
  if (argc < 2) return 2;
  pyr_host_options options{};
  options.threads = 1;
  options.policy = "pyramidinfer";
  options.policy_options = "recent=0.3 floor=4";
  pyr_host *opened = nullptr;
  pyr_status status = pyr_host_open(argv[1], &options, &opened);
  std::unique_ptr<pyr_host, close_host> host(opened);

  std::string text;
  pyr_generate_options how{};
  how.max_tokens = 40;
  how.on_piece = [](void *ud, const char *piece, size_t length) {
    static_cast<std::string *>(ud)->append(std::string_view(piece, length));
    return 0;
  };
  how.ud = &text;
  if (status == PYR_OK) status = pyr_host_generate(host.get(), "hello world", &how);
  if (status != PYR_OK)
    std::fprintf(stderr, "%s: %s\n", pyr_status_name(status), pyr_host_error(host.get()));
  std::fputs(text.c_str(), stdout);
  return status != PYR_OK;
}
