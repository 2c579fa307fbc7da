// chat.cpp MODEL MESSAGES — the answer to a JSON list of messages, from C++17.
#include "pyramid.h"

#include <cstdio>
#include <memory>
#include <string>

struct close_host { void operator()(pyr_host *host) const { pyr_host_close(host); } };

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  pyr_host *opened = nullptr;
  pyr_status status = pyr_host_open(argv[1], nullptr, &opened);
  std::unique_ptr<pyr_host, close_host> host(opened);
  std::string text;
  pyr_generate_options how{};
  how.size = sizeof how;
  how.max_tokens = 12;
  how.on_piece = [](void *ud, const char *piece, size_t length) {
    static_cast<std::string *>(ud)->append(piece, length);
    return 0;
  };
  how.ud = &text;
  if (status == PYR_OK) status = pyr_host_generate_chat(host.get(), argv[2], nullptr, &how);
  if (status != PYR_OK)
    std::fprintf(stderr, "%s: %s\n", pyr_status_name(status), pyr_host_error(host.get()));
  std::fputs(text.c_str(), stdout);
  return status != PYR_OK;
}
