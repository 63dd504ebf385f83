/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The runner behind test.h: a process per test, so that a crash, a leak or a hang is that test's alone. The
 * child leads a process group, so that whatever it started can be found (and ended) afterwards.
 */

#include "test.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <ftw.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cuda/emulator.h"

#define EXIT_SKIP 77

extern const struct test __start_kvtests[], __stop_kvtests[];

static uint64_t seed;

uint64_t test_seed(void)
{
    if (!seed) {
        const char *given = getenv("KVCACHED_TEST_SEED");
        struct timespec now;

        clock_gettime(CLOCK_REALTIME, &now);
        seed = given ? strtoull(given, NULL, 0) : (uint64_t)now.tv_sec * 1000000007u + (uint64_t)now.tv_nsec;
        seed |= 1;
        /* At once: a test that crashes or hangs says nothing later. */
        fprintf(stderr, "seed: KVCACHED_TEST_SEED=%" PRIu64 "\n", seed);
    }
    return seed;
}

unsigned test_rounds(unsigned usual)
{
    const char *given = getenv("KVCACHED_TEST_ROUNDS");

    return given ? (unsigned)strtoul(given, NULL, 0) : usual;
}

void test_fail(const char *file, int line, const char *format, ...)
{
    va_list args;

    fprintf(stderr, "%s:%d: ", file, line);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    fflush(NULL);
    _exit(1);
}

void test_skip(const char *reason)
{
    fprintf(stderr, "skipped: %s\n", reason);
    fflush(NULL);
    _exit(EXIT_SKIP);
}

/* The GPU driver's own are not the test's to close. */
static bool belongs_to_driver(DIR *dir, const char *name)
{
    char target[16] = "";

    return readlinkat(dirfd(dir), name, target, sizeof(target) - 1) > 0 &&
           strncmp(target, "/dev/nvidia", 11) == 0;
}

static unsigned count_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    struct dirent *entry;
    unsigned n = 0;

    if (!dir)
        return 0;
    while ((entry = readdir(dir)))
        n += !belongs_to_driver(dir, entry->d_name);
    closedir(dir);
    return n;
}

/* An emulated driver that the test has loaded must be left as it was found. */
static void leave_emulator(const struct test *test)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    __typeof__(&cuemuGetStats) get_stats;
    __typeof__(&cuemuLeave) leave;
    struct cuemu_stats stats;

    if (!library)
        return;
    get_stats = (__typeof__(get_stats))dlsym(library, "cuemuGetStats");
    leave = (__typeof__(leave))dlsym(library, "cuemuLeave");
    if (get_stats && get_stats(&stats) == 0 && (stats.handles || stats.mappings))
        test_fail(__FILE__, __LINE__, "%s: %" PRIu64 " driver handles and %" PRIu64 " mappings are left",
                  test->name, stats.handles, stats.mappings);
    if (leave)
        leave();
    dlclose(library);
}

static char folder[64];
static bool folder_made;

const char *test_folder(void)
{
    if (!folder_made && mkdir(folder, 0777) == 0)
        chmod(folder, 0777);
    folder_made = true;
    return folder;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *at)
{
    return remove(path);
}

static void remove_folder(void)
{
    nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* Our own call, not exit handlers, ends the process: a sanitizer's leak check runs from exit(). */
static void run_one(const struct test *test)
{
    unsigned before = count_descriptors(), after;

    test->run();
    leave_emulator(test);
    after = count_descriptors();
    if (after != before)
        test_fail(__FILE__, __LINE__, "%s: %u descriptors before, %u after", test->name, before, after);
}

static void on_alarm(int signal)
{
    (void)signal;
}

static volatile sig_atomic_t ended_by;
static volatile pid_t running;

/* The folder is still to be removed, and who would otherwise outlive us is still to be killed. */
static void on_end(int signal)
{
    ended_by = signal;
    if (running > 0)
        kill(-running, SIGKILL);
}

/* As if it had not been caught. */
static void end_if_told(void)
{
    if (!ended_by)
        return;
    fflush(NULL);
    signal(ended_by, SIG_DFL);
    raise(ended_by);
}

static const char *describe_end(const struct test *test, int status, bool late, char *buf, size_t size)
{
    if (late)
        snprintf(buf, size, "exceeded its limit of %u s", test->limit_s);
    else if (WIFSIGNALED(status))
        snprintf(buf, size, "killed by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    else
        snprintf(buf, size, "exit status %d", WEXITSTATUS(status));
    return buf;
}

static int run_forked(const struct test *test, unsigned number)
{
    int status = 0;
    bool late = false, left_children;
    char why[96];
    pid_t pid;

    fflush(NULL);
    pid = fork();
    if (pid < 0) {
        printf("not ok %u - %s # fork: %s\n", number, test->name, strerror(errno));
        return 1;
    }
    if (pid == 0) {
        signal(SIGTERM, SIG_DFL);
        signal(SIGINT, SIG_DFL);
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        run_one(test);
        exit(0);
    }
    setpgid(pid, pid);
    running = pid;
    alarm(test->limit_s);
    if (ended_by)
        kill(-pid, SIGKILL);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
        late = true;
        kill(-pid, SIGKILL);
    }
    alarm(0);
    running = 0;
    left_children = kill(-pid, SIGKILL) == 0;
    remove_folder();
    end_if_told();

    if (!late && WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SKIP) {
        printf("ok %u - %s # SKIP\n", number, test->name);
        return 0;
    }
    if (late || status != 0) {
        printf("not ok %u - %s # %s\n", number, test->name,
               describe_end(test, status, late, why, sizeof(why)));
        return 1;
    }
    if (left_children) {
        printf("not ok %u - %s # left processes behind\n", number, test->name);
        return 1;
    }
    printf("ok %u - %s\n", number, test->name);
    return 0;
}

static bool wanted(const struct test *test, int argc, char **argv)
{
    bool any = false;

    for (int i = 1; i < argc; i++) {
        if (argv[i][0] == '-')
            continue;
        any = true;
        if (strcmp(argv[i], test->name) == 0)
            return true;
    }
    return !any;
}

static bool exists(const char *name)
{
    for (const struct test *t = __start_kvtests; t < __stop_kvtests; t++)
        if (strcmp(name, t->name) == 0)
            return true;
    return false;
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_handler = on_alarm}, end_action = {.sa_handler = on_end};
    unsigned number = 0, failed = 0;
    bool list = false, no_fork = false;

    for (int i = 1; i < argc; i++) {
        list |= strcmp(argv[i], "--list") == 0;
        no_fork |= strcmp(argv[i], "--no-fork") == 0;
        if (argv[i][0] != '-' && !exists(argv[i])) {
            printf("Bail out! There is no test %s\n", argv[i]);
            return 1;
        }
    }
    sigaction(SIGALRM, &action, NULL);
    if (!no_fork) {
        sigaction(SIGTERM, &end_action, NULL);
        sigaction(SIGINT, &end_action, NULL);
    }
    for (const struct test *t = __start_kvtests; t < __stop_kvtests; t++) {
        if (!wanted(t, argc, argv))
            continue;
        number++;
        if (list) {
            puts(t->name);
            continue;
        }
        snprintf(folder, sizeof(folder), "/dev/shm/kvcached-test-%d-%u", (int)getpid(), number);
        remove_folder(); /* of a program that was killed, and had our number */
        if (no_fork) {
            run_one(t);
            remove_folder();
            folder_made = false;
        } else {
            failed += run_forked(t, number) != 0;
        }
    }
    if (!list)
        printf("1..%u\n", number);
    return failed ? 1 : 0;
}
