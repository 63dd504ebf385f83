/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Log: one line on stderr when something is wrong or has changed. Under systemd a line carries its priority
 * ("<4>…"); elsewhere a word. Control characters in a line become '?', so that what a peer named itself
 * cannot forge another line.
 */

#include <stdbool.h>
#include <stdint.h>

enum log_level { /* as syslog's */
                 LOG_LEVEL_ERROR = 3,
                 LOG_LEVEL_WARNING = 4,
                 LOG_LEVEL_NOTICE = 5,
                 LOG_LEVEL_INFO = 6,
                 LOG_LEVEL_DEBUG = 7,
};

/* Finds out whether stderr is the journal. Before that, lines are plain. */
void log_open(void);

/* Lines above this level are dropped; the default is LOG_LEVEL_NOTICE. */
void log_set_level(enum log_level level);

void log_line(enum log_level level, const char *format, ...) __attribute__((cold, format(printf, 2, 3)));

#define log_error(...) log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_line(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_notice(...) log_line(LOG_LEVEL_NOTICE, __VA_ARGS__)
#define log_info(...) log_line(LOG_LEVEL_INFO, __VA_ARGS__)
