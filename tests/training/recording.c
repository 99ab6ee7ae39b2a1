/* Records what is done to the files below a folder, by whatever thread, library and process: for
 * LD_PRELOAD. The environment's RECORDED is FOLDER:LOG; `record()` reads the variable again.
 *
 * The log holds a line for each operation, in the order in which the operations took effect:
 *
 *     THREAD KIND INODE A B PATH [TAB PATH]    a `write` has A bytes, which follow, at offset B
 *
 * KIND is file, folder, write, size (A: bytes), sync, gone, rename, link, or ?, which no test allows.
 * The lock on the log is held from before an operation until its line is written. Each operation
 * opens the log anew, because a lock excludes other openings of a file, and not other threads. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define LENGTH 4096

static char folder[LENGTH], journal[LENGTH]; /* no folder: nothing is recorded */

__attribute__((constructor)) void record(void) {
  const char *told = getenv("RECORDED"), *colon = told ? strchr(told, ':') : NULL;
  *folder = 0;
  if (!colon) return;
  snprintf(journal, sizeof journal, "%s", colon + 1);
  snprintf(folder, sizeof folder, "%.*s/", (int)(colon - told), told);
}

static int begin(void) {
  int log = NEXT(open)(journal, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  if (log < 0 || flock(log, LOCK_EX)) abort();
  return log;
}

static void put(int log, const void *from, size_t size) {
  while (size) {
    ssize_t done = NEXT(write)(log, from, size);
    if (done < 0) abort();
    from = (const char *)from + done, size -= done;
  }
}

static void note(int log, const char *kind, ino_t inode, long a, long b, const char *paths) {
  char line[3 * LENGTH];
  int size = snprintf(line, sizeof line, "%d %s %lu %ld %ld %s\n", gettid(), kind,
                      (unsigned long)inode, a, b, paths);
  put(log, line, size);
}

static void end(int log) {
  int error = errno;
  flock(log, LOCK_UN); /* a process forked in the meantime holds the opening, too */
  close(log);
  errno = error;
}

/* The path relative to the folder, in `to`; 0 if the path is not below the folder. */
static int below(int at, const char *path, char *to) {
  char whole[2 * LENGTH];
  if (!*folder || !path) return 0;
  if (*path != '/') {
    char link[64] = "/proc/self/cwd", start[LENGTH];
    if (at != AT_FDCWD) snprintf(link, sizeof link, "/proc/self/fd/%d", at);
    ssize_t size = readlink(link, start, sizeof start - 1);
    if (size < 0) return 0;
    start[size] = 0;
    snprintf(whole, sizeof whole, "%s/%s", start, path);
    path = whole;
  }
  size_t size = strlen(folder);
  if (strncmp(path, folder, size)) return 0;
  snprintf(to, LENGTH, "%s", path + size);
  return 1;
}

/* The inode of a handle on a file or folder below the folder, or on the folder; else 0. The path
 * relative to the folder, in `to`, ends with a slash. */
static ino_t inode_of(int handle, char *to) {
  char link[64], path[LENGTH + 1];
  struct stat status;
  if (!*folder) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
  int error = errno;
  ssize_t size = readlink(link, path, LENGTH - 1);
  errno = error;
  if (size < 0) return 0;
  strcpy(path + size, "/");
  size = strlen(folder);
  if (strncmp(path, folder, size) || fstat(handle, &status)) return 0;
  strcpy(to, path + size);
  return status.st_ino;
}

static int opening(int at, const char *path, int flags, mode_t mode) {
  char name[LENGTH];
  struct stat status;
  if (!(flags & (O_CREAT | O_TRUNC | O_TMPFILE)) || !below(at, path, name))
    return NEXT(openat)(at, path, flags, mode);
  int log = begin(), nameless = (flags & O_TMPFILE) == O_TMPFILE;
  int made = nameless || fstatat(at, path, &status, 0);
  int handle = NEXT(openat)(at, path, flags, mode);
  if (handle >= 0 && !fstat(handle, &status) && S_ISREG(status.st_mode)) {
    if (made) note(log, "file", status.st_ino, 0, 0, nameless ? "" : name);
    else if (flags & O_TRUNC) note(log, "size", status.st_ino, 0, 0, name);
  }
  end(log);
  return handle;
}

#define MODE(flags, mode) \
  mode_t mode = 0; \
  if (flags & (O_CREAT | O_TMPFILE)) { \
    va_list rest; \
    va_start(rest, flags); \
    mode = va_arg(rest, mode_t); \
    va_end(rest); \
  }
#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    MODE(flags, mode) return opening(AT_FDCWD, path, flags, mode); \
  }
#define OPENAT(name) \
  int name(int at, const char *path, int flags, ...) { \
    MODE(flags, mode) return opening(at, path, flags, mode); \
  }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
int creat(const char *path, mode_t mode) {
  return opening(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

/* Log a write of the first `size` bytes of `parts` at the offset `at`. If `at` is -1, the write was
 * at the handle's position, which now lies behind the bytes. */
static void wrote(int log, int handle, ino_t inode, const char *name, const struct iovec *parts,
                  ssize_t size, off_t at) {
  if (at < 0) at = lseek(handle, 0, SEEK_CUR) - size;
  for (; size > 0; parts++) {
    ssize_t some = (ssize_t)parts->iov_len < size ? (ssize_t)parts->iov_len : size;
    note(log, "write", inode, some, at, name);
    put(log, parts->iov_base, some);
    size -= some, at += some;
  }
}

#define WRITE(name, args, call, parts, at) \
  ssize_t name args { \
    char place[LENGTH]; \
    ino_t inode = inode_of(handle, place); \
    if (!inode) return NEXT(name) call; \
    int log = begin(); \
    ssize_t size = NEXT(name) call; \
    wrote(log, handle, inode, place, parts, size, at); \
    end(log); \
    return size; \
  }
#define ONE(from, size) (&(struct iovec){(void *)from, size})
WRITE(write, (int handle, const void *from, size_t n), (handle, from, n), ONE(from, n), -1)
WRITE(pwrite, (int handle, const void *from, size_t n, off_t at), (handle, from, n, at),
      ONE(from, n), at)
WRITE(pwrite64, (int handle, const void *from, size_t n, off64_t at), (handle, from, n, at),
      ONE(from, n), at)
WRITE(writev, (int handle, const struct iovec *parts, int n), (handle, parts, n), parts, -1)
WRITE(pwritev, (int handle, const struct iovec *parts, int n, off_t at), (handle, parts, n, at),
      parts, at)
WRITE(pwritev64, (int handle, const struct iovec *parts, int n, off64_t at),
      (handle, parts, n, at), parts, at)

#define ON_HANDLE(name, args, call, kind, a) \
  int name args { \
    char place[LENGTH]; \
    ino_t inode = inode_of(handle, place); \
    if (!inode) return NEXT(name) call; \
    int log = begin(), failed = NEXT(name) call; \
    if (!failed) note(log, kind, inode, a, 0, place); \
    end(log); \
    return failed; \
  }
ON_HANDLE(fsync, (int handle), (handle), "sync", 0)
ON_HANDLE(fdatasync, (int handle), (handle), "sync", 0)
ON_HANDLE(ftruncate, (int handle, off_t size), (handle, size), "size", size)
ON_HANDLE(ftruncate64, (int handle, off64_t size), (handle, size), "size", size)

/* Writing through memory would not be seen: the process ends. */
#define MAPPED(name, off) \
  void *name(void *start, size_t size, int may, int flags, int handle, off at) { \
    char place[LENGTH]; \
    if (may & PROT_WRITE && flags & MAP_SHARED && inode_of(handle, place)) abort(); \
    return NEXT(name)(start, size, may, flags, handle, at); \
  }
MAPPED(mmap, off_t)
MAPPED(mmap64, off64_t)

/* Copies inside the kernel are refused: the callers then read and write. */
#define COPY(name, args, call) \
  ssize_t name args { \
    char place[LENGTH]; \
    if (!inode_of(to, place)) return NEXT(name) call; \
    errno = ENOSYS; \
    return -1; \
  }
ssize_t sendfile(int to, int from, off_t *at, size_t n);
ssize_t sendfile64(int to, int from, off64_t *at, size_t n);
COPY(sendfile, (int to, int from, off_t *at, size_t n), (to, from, at, n))
COPY(sendfile64, (int to, int from, off64_t *at, size_t n), (to, from, at, n))
COPY(copy_file_range, (int from, off64_t *x, int to, off64_t *y, size_t n, unsigned flags),
     (from, x, to, y, n, flags))

/* Operations on names: of one path, then of two. */
static int named(int log, int failed, const char *kind, int at, const char *path,
                 const char *name) {
  struct stat status = {0};
  if (!failed) {
    if (!strcmp(kind, "folder")) fstatat(at, path, &status, 0);
    note(log, kind, status.st_ino, 0, 0, name);
  }
  end(log);
  return failed;
}
#define ON_NAME(name, args, call, kind, at) \
  int name args { \
    char place[LENGTH]; \
    if (!below(at, path, place)) return NEXT(name) call; \
    int log = begin(); \
    return named(log, NEXT(name) call, kind, at, path, place); \
  }
ON_NAME(mkdir, (const char *path, mode_t mode), (path, mode), "folder", AT_FDCWD)
ON_NAME(mkdirat, (int at, const char *path, mode_t mode), (at, path, mode), "folder", at)
ON_NAME(unlink, (const char *path), (path), "gone", AT_FDCWD)
ON_NAME(unlinkat, (int at, const char *path, int flags), (at, path, flags), "gone", at)
ON_NAME(rmdir, (const char *path), (path), "gone", AT_FDCWD)

#define ON_NAMES(name, args, call, kind, at, path, to_at, to) \
  int name args { \
    char places[2 * LENGTH], place[LENGTH]; \
    int both = below(at, path, places); \
    if (both != below(to_at, to, place)) abort(); \
    if (!both) return NEXT(name) call; \
    strcat(strcat(places, "\t"), place); \
    int log = begin(); \
    return named(log, NEXT(name) call, kind, at, path, places); \
  }
ON_NAMES(rename, (const char *path, const char *to), (path, to), "rename", AT_FDCWD, path,
         AT_FDCWD, to)
ON_NAMES(renameat, (int at, const char *path, int to_at, const char *to), (at, path, to_at, to),
         "rename", at, path, to_at, to)
ON_NAMES(renameat2, (int at, const char *path, int to_at, const char *to, unsigned flags),
         (at, path, to_at, to, flags), (flags & RENAME_EXCHANGE) ? "?" : "rename", at, path, to_at, to)
ON_NAMES(link, (const char *path, const char *to), (path, to), "link", AT_FDCWD, path, AT_FDCWD,
         to)
ON_NAMES(linkat, (int at, const char *path, int to_at, const char *to, int flags),
         (at, path, to_at, to, flags), "link", at, path, to_at, to)
