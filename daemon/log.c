/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Writes whole lines to stderr and owns nothing but the level and the form of a line. Whether something
 * deserves a line is the caller's judgement: silence is health.
 */

#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static enum log_level max_level = LOG_LEVEL_NOTICE;
static bool for_journal;

/* systemd names the journal's stream by device and inode, since a service may redirect stderr elsewhere. */
void log_open(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    unsigned long long device, inode;
    struct stat st;

    for_journal = stream && sscanf(stream, "%llu:%llu", &device, &inode) == 2 &&
                  fstat(STDERR_FILENO, &st) == 0 && st.st_dev == device && st.st_ino == inode;
}

void log_set_level(enum log_level level)
{
    max_level = level;
}

static const char *level_word(enum log_level level)
{
    switch (level) {
    case LOG_LEVEL_ERROR:
        return "error: ";
    case LOG_LEVEL_WARNING:
        return "warning: ";
    default:
        return "";
    }
}

static void blank_controls(char *text)
{
    for (; *text; text++) {
        if ((unsigned char)*text < ' ' || *text == 0x7f)
            *text = '?';
    }
}

void log_line(enum log_level level, const char *format, ...)
{
    char text[1024];
    va_list args;

    if (level > max_level)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    blank_controls(text);
    if (for_journal)
        fprintf(stderr, "<%d>%s\n", (int)level, text);
    else
        fprintf(stderr, "kvcachedd: %s%s\n", level_word(level), text);
}
