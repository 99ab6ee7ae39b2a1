/* Makes a file operation below a folder fail, in whatever thread and library: for LD_PRELOAD. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[4096]; /* empty: nothing fails */
static atomic_int seen;
static int chosen, lasting, code;

/* Let the operation numbered `operation` fail, from 1, or all from there on; 0 only counts.
 * An empty `below` ends this; the count stays. */
void failing(const char *below, int operation, int all_after, int error) {
  chosen = operation, lasting = all_after, code = error;
  if (*below) seen = 0;
  snprintf(folder, sizeof folder, "%s", below);
}

int operations(void) { return seen; }

static int fails(const char *path) {
  if (!*folder || !path || !strstr(path, folder)) return 0;
  int number = ++seen;
  if (!chosen || (number != chosen && !(lasting && number > chosen))) return 0;
  errno = code;
  return 1;
}

static int fails_at(int handle) {
  char link[64], path[4096];
  if (!*folder) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return fails(path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define ON_PATH(kind, name, args, path, call) \
  kind name args { return fails(path) ? -1 : NEXT(name) call; }
#define ON_HANDLE(kind, name, args, call) \
  kind name args { return fails_at(handle) ? -1 : NEXT(name) call; }
#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    return fails(path) ? -1 : NEXT(name)(path, flags, mode); \
  }

OPEN(open)
OPEN(open64)
DIR *opendir(const char *path) { return fails(path) ? NULL : NEXT(opendir)(path); }
ON_PATH(int, mkdir, (const char *path, mode_t mode), path, (path, mode))
ON_PATH(int, rename, (const char *path, const char *to), path, (path, to))
ON_PATH(int, unlink, (const char *path), path, (path))
ON_HANDLE(ssize_t, write, (int handle, const void *from, size_t size), (handle, from, size))
ON_HANDLE(ssize_t, writev, (int handle, const struct iovec *from, int n), (handle, from, n))
ON_HANDLE(ssize_t, pwrite, (int handle, const void *from, size_t size, off_t at),
          (handle, from, size, at))
ON_HANDLE(ssize_t, pwrite64, (int handle, const void *from, size_t size, off64_t at),
          (handle, from, size, at))
ON_HANDLE(int, fsync, (int handle), (handle))
ON_HANDLE(int, fdatasync, (int handle), (handle))
ON_HANDLE(int, ftruncate, (int handle, off_t size), (handle, size))
ON_HANDLE(int, ftruncate64, (int handle, off64_t size), (handle, size))
