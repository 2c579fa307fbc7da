/* http_server.c FOLDER — a server on 127.0.0.1 for the specs of what fetches files: it writes its
 * port into FOLDER/port, serves the files of FOLDER one connection at a time, and ends when its
 * standard input does.
 *
 * GET knows Range and If-Range; a path that ends in a slash is that folder's file "index". How a
 * file is served is said by small files beside it:
 *
 *   X.break      so many bytes of each answer's body are sent, then the connection breaks
 *   X.norange    ranges are ignored: always the whole file
 *   X.etag       its mark, quotes and all
 *   X.location   302 to that address, with X.linked as X-Linked-Etag, if that is there
 *   X.status     this status, without a body
 *
 * Each request adds a line to FOLDER/log: its path and its range. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

static const char *folder;

static void path_of(char out[2048], const char *name, const char *suffix) {
  snprintf(out, 2048, "%s/%s%s", folder, name, suffix);
}

/* The first line of a file beside X; 0 if there is none. */
static int beside(char out[1024], const char *name, const char *suffix) {
  char path[2048];
  path_of(path, name, suffix);
  FILE *file = fopen(path, "rb");
  out[0] = 0;
  if (!file) return 0;
  if (fgets(out, 1024, file)) out[strcspn(out, "\r\n")] = 0;
  fclose(file);
  return 1;
}

static void reply(int to, const char *status, const char *headers) {
  dprintf(to, "HTTP/1.1 %s\r\n%sContent-Length: 0\r\nConnection: close\r\n\r\n", status, headers);
}

/* A header's value out of a request. */
static int header(const char *request, const char *name, char out[1024]) {
  for (const char *line = request; (line = strstr(line, "\r\n")) != NULL;) {
    line += 2;
    size_t length = strlen(name);
    if (strncasecmp(line, name, length) == 0 && line[length] == ':') {
      snprintf(out, 1024, "%.*s", (int)strcspn(line + length + 2, "\r\n"), line + length + 2);
      return 1;
    }
  }
  out[0] = 0;
  return 0;
}

static void send_file(int to, const char *name, FILE *file, const char *request) {
  char text[1024], etag[1024], mark[1100] = "";
  fseek(file, 0, SEEK_END);
  long size = ftell(file), first = 0;
  int partial = header(request, "Range", text) && sscanf(text, "bytes=%ld-", &first) == 1;
  if (beside(etag, name, ".etag")) snprintf(mark, sizeof mark, "ETag: %s\r\n", etag);
  if (header(request, "If-Range", text) && strcmp(text, etag) != 0) partial = 0;
  if (beside(text, name, ".norange")) partial = 0;
  if (!partial) first = 0;
  if (first >= size && partial) {
    snprintf(text, sizeof text, "Content-Range: bytes */%ld\r\n", size);
    reply(to, "416 Range Not Satisfiable", text);
    return;
  }
  dprintf(to, "HTTP/1.1 %s\r\n%sContent-Length: %ld\r\nConnection: close\r\n",
          partial ? "206 Partial Content" : "200 OK", mark, size - first);
  if (partial) dprintf(to, "Content-Range: bytes %ld-%ld/%ld\r\n", first, size - 1, size);
  dprintf(to, "\r\n");
  long left = size - first;
  if (beside(text, name, ".break") && atol(text) < left) left = atol(text);
  fseek(file, first, SEEK_SET);
  char block[65536];
  while (left > 0) {
    size_t count = fread(block, 1, left < (long)sizeof block ? (size_t)left : sizeof block, file);
    if (count == 0 || send(to, block, count, MSG_NOSIGNAL) != (ssize_t)count) break;
    left -= (long)count;
  }
}

static void answer(int to, char *request) {
  char name[1024], text[1024], range[1024], headers[2200], path[2048];
  if (sscanf(request, "GET /%1000[^ ?]", name) != 1 || strstr(name, "..")) {
    reply(to, "400 Bad Request", "");
    return;
  }
  if (name[strlen(name) - 1] == '/') strcat(name, "index");
  header(request, "Range", range);
  path_of(path, "log", "");
  FILE *log = fopen(path, "ab");
  if (log) {
    fprintf(log, "%s %s\n", name, range);
    fclose(log);
  }
  if (beside(text, name, ".status")) {
    reply(to, text, "");
    return;
  }
  if (beside(text, name, ".location")) {
    char sum[1024];
    int used = snprintf(headers, sizeof headers, "Location: %s\r\n", text);
    if (beside(sum, name, ".linked"))
      snprintf(headers + used, sizeof headers - (size_t)used, "X-Linked-Etag: \"%s\"\r\n", sum);
    reply(to, "302 Found", headers);
    return;
  }
  path_of(path, name, "");
  FILE *file = fopen(path, "rb");
  if (!file) {
    reply(to, "404 Not Found", "");
    return;
  }
  send_file(to, name, file, request);
  fclose(file);
}

int main(int argc, char **argv) {
  struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
  socklen_t length = sizeof at;
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  if (argc != 2 || listener < 0 || bind(listener, (struct sockaddr *)&at, sizeof at) != 0
      || listen(listener, 16) != 0 || getsockname(listener, (struct sockaddr *)&at, &length) != 0)
    return 1;
  folder = argv[1];
  signal(SIGPIPE, SIG_IGN);                      /* clients may leave before their answer */
  char path[2048], named[2048];
  path_of(path, "port.new", "");
  path_of(named, "port", "");
  FILE *port = fopen(path, "wb");
  if (!port) return 1;
  fprintf(port, "%d", ntohs(at.sin_port));
  fclose(port);
  rename(path, named);
  for (;;) {
    struct pollfd wait[] = { { .fd = 0, .events = POLLIN },
                             { .fd = listener, .events = POLLIN } };
    char request[16384];
    size_t have = 0;
    if (poll(wait, 2, -1) < 0) return 1;
    if (wait[0].revents) return 0;
    int to = accept(listener, NULL, NULL);
    if (to < 0) continue;
    request[0] = 0;
    while (have < sizeof request - 1 && !strstr(request, "\r\n\r\n")) {
      ssize_t count = recv(to, request + have, sizeof request - 1 - have, 0);
      if (count <= 0) break;
      have += (size_t)count;
      request[have] = 0;
    }
    answer(to, request);
    close(to);
  }
}
