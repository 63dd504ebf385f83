/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Progress for people. It reads the board's counters and owns nothing but the line on the terminal.
 */

#include "progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/parse.h"

#define TERMINAL_EVERY_S 0.2
#define LOG_EVERY_S 5.0
#define LINE_MAX_BYTES 1024

double progress_clock(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / (double)NSEC_PER_SEC;
}

static double every(const struct progress *p)
{
    return p->terminal ? TERMINAL_EVERY_S : LOG_EVERY_S;
}

void progress_init(struct progress *p)
{
    *p = (struct progress){.terminal = isatty(STDERR_FILENO)};
    p->next_s = progress_clock() + every(p);
}

static int put_engine(char *at, size_t space, const struct board *board, const struct slot *slot)
{
    uint64_t through = atomic_load_explicit(&slot->served, memory_order_relaxed) +
                       atomic_load_explicit(&slot->refused, memory_order_relaxed);
    uint64_t used = atomic_load_explicit(&slot->used_blocks, memory_order_relaxed);
    char bytes[FORMAT_SIZE_MAX];

    return snprintf(at, space, "  %s %" PRIu64 "/%zu %s", slot->instance, through, slot->trace->n,
                    format_size(bytes, used * board_block_bytes(board)));
}

static size_t terminal_columns(void)
{
    struct winsize size;

    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 ? size.ws_col - 1U : 79;
}

void progress_show(struct progress *p, const struct board *board, double replayed_s)
{
    char line[LINE_MAX_BYTES];
    int length;

    if (progress_clock() < p->next_s)
        return;
    p->next_s = progress_clock() + every(p);
    length = snprintf(line, sizeof(line), "%.0f s", replayed_s);
    for (size_t i = 0; i < board->n && length < (int)sizeof(line); i++)
        length += put_engine(line + length, sizeof(line) - (size_t)length, board, &board->slots[i]);
    if (p->terminal)
        fprintf(stderr, "\r\033[K%.*s", (int)terminal_columns(), line);
    else
        fprintf(stderr, "kvreplay: %s\n", line);
    p->drawn = p->terminal;
}

double progress_wait_s(const struct progress *p)
{
    double wait = p->next_s - progress_clock();

    return wait > 0 ? wait : 0;
}

void progress_end(struct progress *p)
{
    if (p->drawn)
        fputs("\r\033[K", stderr);
    p->drawn = false;
}
