/* Writes down in the file GUARDED_POWER_LOG what the process does to files below the folder GUARDED_POWER_FOLDER, and
 * what it has synced; loaded with LD_PRELOAD. tests/chaos/power.py makes of it what a power cut would leave.
 *
 * A record: kind (1 byte), pid, fd (4 bytes each), offset (8), length of the data (4), data; little endian, as here. A
 * write or rename is written down before anything else can be: one lock holds both together. A sync is written down when
 * it begins ('s') and when it has succeeded ('S'), since only what was written before it began is certain to be in it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define FDS 65536
#define REAL(name) \
    static __typeof__(&name) real_##name; \
    if (!real_##name) real_##name = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char watched[FDS];
static char folder[PATH_MAX];
static size_t folder_length;
static int log_fd = -1;
static uint64_t syncs;

/* A child may have forked while another thread held the lock; until it executes something, it writes nothing of ours. */
static void end_in_child(void) { log_fd = -1; }

__attribute__((constructor)) static void begin(void) {
    const char *given = getenv("GUARDED_POWER_FOLDER"), *log = getenv("GUARDED_POWER_LOG");
    if (!given || !log || !realpath(given, folder)) return;
    folder_length = strlen(folder);
    REAL(open64);
    log_fd = real_open64(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (log_fd < 0 || pthread_atfork(NULL, NULL, end_in_child)) abort();
}

static int is_watched(int fd) { return log_fd >= 0 && fd >= 0 && fd < FDS && watched[fd]; }

/* The path as the kernel sees it, or 0 if it is not below the folder. The parent must exist. */
static int resolve(int dir, const char *path, char *full) {
    char given[PATH_MAX], parent[PATH_MAX];
    if (log_fd < 0 || !path || strlen(path) + 1 >= sizeof given) return 0;
    if (path[0] != '/' && dir != AT_FDCWD) return 0;
    strcpy(given, path);
    char *slash = strrchr(given, '/');
    const char *name = slash ? slash + 1 : given;
    if (slash == given) return 0;
    if (slash) *slash = 0;
    if (!realpath(slash ? given : ".", parent)) return 0;
    if (strlen(parent) + strlen(name) + 2 > PATH_MAX) return 0;
    strcpy(full, parent);
    strcat(full, "/");
    strcat(full, name);
    if (!strcmp(full, folder)) return 1;
    return !strncmp(full, folder, folder_length) && full[folder_length] == '/';
}

static void note(char kind, int fd, uint64_t offset, const void *data, size_t length) {
    char head[21];
    uint32_t pid = (uint32_t)getpid(), number = (uint32_t)fd, size = (uint32_t)length;
    int saved = errno;
    head[0] = kind;
    memcpy(head + 1, &pid, 4);
    memcpy(head + 5, &number, 4);
    memcpy(head + 9, &offset, 8);
    memcpy(head + 17, &size, 4);
    struct iovec parts[2] = {{head, sizeof head}, {(void *)data, length}};
    ssize_t whole = (ssize_t)(sizeof head + length);
    if (writev(log_fd, parts, 2) != whole) abort();
    errno = saved;
}

static int opened(int fd, const char *full, int flags) {
    if (fd < 0 || fd >= FDS) return fd;
    struct stat64 status;
    uint64_t facts = flags & O_TRUNC ? 1 : 0;
    /* A folder, or a file without a name (O_TMPFILE). */
    if (fstat64(fd, &status) == 0 && (S_ISDIR(status.st_mode) || status.st_nlink == 0)) facts |= 2;
    watched[fd] = 1;
    note('o', fd, facts, full, strlen(full));
    return fd;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        char full[PATH_MAX]; \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        REAL(name); \
        if (!resolve(AT_FDCWD, path, full)) return real_##name(path, flags, mode); \
        pthread_mutex_lock(&lock); \
        int fd = opened(real_##name(path, flags, mode), full, flags); \
        pthread_mutex_unlock(&lock); \
        return fd; \
    }
#define OPENAT(name) \
    int name(int dir, const char *path, int flags, ...) { \
        char full[PATH_MAX]; \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        REAL(name); \
        if (!resolve(dir, path, full)) return real_##name(dir, path, flags, mode); \
        pthread_mutex_lock(&lock); \
        int fd = opened(real_##name(dir, path, flags, mode), full, flags); \
        pthread_mutex_unlock(&lock); \
        return fd; \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

int close(int fd) {
    REAL(close);
    if (!is_watched(fd)) return real_close(fd);
    pthread_mutex_lock(&lock);
    watched[fd] = 0;
    note('c', fd, 0, NULL, 0);
    int result = real_close(fd);
    pthread_mutex_unlock(&lock);
    return result;
}

ssize_t write(int fd, const void *data, size_t length) {
    REAL(write);
    if (!is_watched(fd)) return real_write(fd, data, length);
    pthread_mutex_lock(&lock);
    ssize_t done = real_write(fd, data, length);
    off64_t end = lseek64(fd, 0, SEEK_CUR);
    if (done > 0) note('w', fd, (uint64_t)(end - done), data, (size_t)done);
    pthread_mutex_unlock(&lock);
    return done;
}

#define PWRITE(name, offset_type) \
    ssize_t name(int fd, const void *data, size_t length, offset_type offset) { \
        REAL(name); \
        if (!is_watched(fd)) return real_##name(fd, data, length, offset); \
        pthread_mutex_lock(&lock); \
        ssize_t done = real_##name(fd, data, length, offset); \
        if (done > 0) note('w', fd, (uint64_t)offset, data, (size_t)done); \
        pthread_mutex_unlock(&lock); \
        return done; \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define FTRUNCATE(name, offset_type) \
    int name(int fd, offset_type size) { \
        REAL(name); \
        if (!is_watched(fd)) return real_##name(fd, size); \
        pthread_mutex_lock(&lock); \
        int result = real_##name(fd, size); \
        if (result == 0) note('t', fd, (uint64_t)size, NULL, 0); \
        pthread_mutex_unlock(&lock); \
        return result; \
    }
FTRUNCATE(ftruncate, off_t)
FTRUNCATE(ftruncate64, off64_t)

#define SYNC(name) \
    int name(int fd) { \
        REAL(name); \
        if (!is_watched(fd)) return real_##name(fd); \
        pthread_mutex_lock(&lock); \
        uint64_t number = ++syncs; \
        note('s', fd, number, NULL, 0); \
        pthread_mutex_unlock(&lock); \
        int result = real_##name(fd); \
        if (result == 0) { \
            pthread_mutex_lock(&lock); \
            note('S', fd, number, NULL, 0); \
            pthread_mutex_unlock(&lock); \
        } \
        return result; \
    }
SYNC(fsync)
SYNC(fdatasync)

static int moved(int result, int from_known, const char *from, int to_known, const char *to) {
    char both[2 * PATH_MAX];
    if (result) return result;
    size_t length = 0;
    if (from_known) strcpy(both, from), length = strlen(from);
    both[length++] = 0;
    if (to_known) strcpy(both + length, to), length += strlen(to);
    note('r', 0, 0, both, length);
    return result;
}

int rename(const char *from, const char *to) {
    char source[PATH_MAX], target[PATH_MAX];
    REAL(rename);
    int from_known = resolve(AT_FDCWD, from, source), to_known = resolve(AT_FDCWD, to, target);
    if (!from_known && !to_known) return real_rename(from, to);
    pthread_mutex_lock(&lock);
    int result = moved(real_rename(from, to), from_known, source, to_known, target);
    pthread_mutex_unlock(&lock);
    return result;
}

int unlink(const char *path) {
    char full[PATH_MAX];
    REAL(unlink);
    if (!resolve(AT_FDCWD, path, full)) return real_unlink(path);
    pthread_mutex_lock(&lock);
    int result = real_unlink(path);
    if (result == 0) note('u', 0, 0, full, strlen(full));
    pthread_mutex_unlock(&lock);
    return result;
}

int mkdir(const char *path, mode_t mode) {
    char full[PATH_MAX];
    REAL(mkdir);
    if (!resolve(AT_FDCWD, path, full)) return real_mkdir(path, mode);
    pthread_mutex_lock(&lock);
    int result = real_mkdir(path, mode);
    if (result == 0) note('m', 0, 0, full, strlen(full));
    pthread_mutex_unlock(&lock);
    return result;
}

/* What would go past this: Python and SQLite write in the plain way where these fail. */
#define REFUSED(type, name, fd, parameters, arguments) \
    type name parameters { \
        REAL(name); \
        if (!is_watched(fd)) return real_##name arguments; \
        errno = EINVAL; \
        return -1; \
    }
REFUSED(ssize_t, sendfile64, to, (int to, int from, off64_t *offset, size_t count), (to, from, offset, count))
REFUSED(ssize_t, copy_file_range, to,
        (int from, off64_t *from_at, int to, off64_t *to_at, size_t length, unsigned int flags),
        (from, from_at, to, to_at, length, flags))
REFUSED(int, posix_fallocate64, fd, (int fd, off64_t offset, off64_t length), (fd, offset, length))
