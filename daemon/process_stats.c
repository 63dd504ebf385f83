/* SPDX-License-Identifier: Apache-2.0 */

/*
 * From /proc/self. How many descriptors are open is the size of their folder where the kernel says so (Linux
 * 6.2), since there may be a hundred thousand of them; else they are counted.
 */

#include "process_stats.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* The first line of a file, or "". */
static const char *first_line(char *buf, int size, const char *path)
{
    FILE *file = fopen(path, "re");

    if (!file || !fgets(buf, size, file))
        *buf = '\0';
    if (file)
        fclose(file);
    return buf;
}

/* Behind the name, which is in parentheses and may hold anything. */
static double start_seconds(void)
{
    struct timespec now, since_boot;
    unsigned long long ticks;
    const char *rest;
    char buf[1024];

    rest = strrchr(first_line(buf, sizeof(buf), "/proc/self/stat"), ')');
    if (!rest ||
        sscanf(rest, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
               &ticks) != 1)
        return 0;
    clock_gettime(CLOCK_REALTIME, &now);
    clock_gettime(CLOCK_BOOTTIME, &since_boot);
    return (double)now.tv_sec - (double)since_boot.tv_sec + (double)(now.tv_nsec - since_boot.tv_nsec) / 1e9 +
           (double)ticks / (double)sysconf(_SC_CLK_TCK);
}

static uint64_t count_entries(const char *path)
{
    DIR *dir = opendir(path);
    uint64_t n = 0;

    if (!dir)
        return 0;
    while (readdir(dir))
        n++;
    closedir(dir);
    return n - 3; /* itself, its parent, and the descriptor that reads it */
}

static uint64_t open_fds(void)
{
    struct stat st;

    if (stat("/proc/self/fd", &st) == 0 && st.st_size > 0)
        return (uint64_t)st.st_size;
    return count_entries("/proc/self/fd");
}

void process_stats(struct process_stats *ret)
{
    uint64_t pages[2] = {0}, page_size = (uint64_t)sysconf(_SC_PAGESIZE);
    struct rusage usage = {0};
    struct rlimit limit = {0};
    char buf[128];

    sscanf(first_line(buf, sizeof(buf), "/proc/self/statm"), "%" SCNu64 " %" SCNu64, &pages[0], &pages[1]);
    getrusage(RUSAGE_SELF, &usage);
    getrlimit(RLIMIT_NOFILE, &limit);
    *ret = (struct process_stats){
        .cpu_seconds = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                       (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6,
        .start_seconds = start_seconds(),
        .virtual_bytes = pages[0] * page_size,
        .resident_bytes = pages[1] * page_size,
        .open_fds = open_fds(),
        .max_fds = limit.rlim_cur,
    };
}
