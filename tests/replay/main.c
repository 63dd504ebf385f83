/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvreplay: request traces through the broker. This file turns a command line into traces, a run and a
 * report.
 */

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "board.h"
#include "generate.h"
#include "options.h"
#include "replay.h"
#include "report.h"

enum {
    EXIT_FAILED = 1,
    EXIT_USAGE = 2,
    EXIT_SIGNAL = 128,
};

static int fail(const char *sentence)
{
    fprintf(stderr, "kvreplay: %s\n", sentence);
    return EXIT_FAILED;
}

static int generate(const struct options *o, size_t i, struct trace **ret_trace,
                    char error[static TRACE_ERROR_MAX])
{
    struct generate_options options = {
        .seed = generate_seed(o->seed, i),
        .phase = generate_phase(i, o->n_specs),
        .trace = &o->trace,
    };
    const struct profile *profile;
    _cleanup_free_ char *name = NULL;
    int r;

    r = trace_split(o->specs[i] + strlen("gen:"), &name, &options.shift_s);
    profile = r < 0 ? NULL : profile_find(name);
    if (!profile) {
        snprintf(error, TRACE_ERROR_MAX, "%s: it should be gen:code or gen:chat, perhaps with @SECONDS",
                 o->specs[i]);
        return -EINVAL;
    }
    r = trace_generate(profile, &options, ret_trace);
    if (r < 0)
        snprintf(error, TRACE_ERROR_MAX, "%s: out of memory", o->specs[i]);
    return r;
}

static int load(const struct options *o, size_t i, struct trace **ret_trace,
                char error[static TRACE_ERROR_MAX])
{
    if (strncmp(o->specs[i], "gen:", strlen("gen:")) == 0)
        return generate(o, i, ret_trace, error);
    return trace_read(o->specs[i], &o->trace, ret_trace, error);
}

static int load_all(const struct options *o, struct board **ret_board, char error[static TRACE_ERROR_MAX])
{
    struct trace *traces[ENGINES_MAX] = {};
    size_t n = 0;
    int r = 0;

    for (; n < o->n_specs && r == 0; n++)
        r = load(o, n, &traces[n], error);
    if (r < 0) {
        for (size_t i = 0; i < n; i++)
            trace_free(traces[i]);
        return r;
    }
    r = board_new(o, traces, n, ret_board);
    if (r < 0)
        snprintf(error, TRACE_ERROR_MAX, "out of memory");
    return r;
}

static int write_trace(const char *folder, size_t i, const struct trace *trace)
{
    _cleanup_free_ char *path = NULL;
    FILE *file;
    int failed = 0;

    if (asprintf(&path, "%s/%zu.csv", folder, i) < 0)
        return -ENOMEM;
    file = fopen(path, "we");
    if (!file)
        return -errno;
    for (size_t k = 0; k < trace->n; k++) {
        const struct trace_request *request = &trace->requests[k];

        failed |=
            fprintf(file, "%.10g,%u,%u\n", request->arrival_s * 1000, request->context, request->output) < 0;
    }
    failed |= fclose(file) != 0;
    return failed ? -EIO : 0;
}

static int write_traces(const struct board *board)
{
    const char *folder = board->options->write_folder;
    int r;

    for (size_t i = 0; i < board->n; i++) {
        r = write_trace(folder, i, board->slots[i].trace);
        if (r < 0) {
            fprintf(stderr, "kvreplay: %s: %s\n", folder, strerror(-r));
            return EXIT_FAILED;
        }
    }
    return 0;
}

static void print_errors(const struct board *board)
{
    for (size_t i = 0; i < board->n; i++)
        if (*board->slots[i].error)
            fprintf(stderr, "kvreplay: %s: %s\n", board->slots[i].instance, board->slots[i].error);
}

static int replay(struct board *board)
{
    const struct options *o = board->options;
    char error[REPLAY_ERROR_MAX];
    int r, signo = 0;

    r = o->live ? replay_live(board, &signo, error) : replay_virtual(board, &signo, error);
    print_errors(board);
    if (r < 0)
        return fail(error);
    r = o->json ? report_json(board) : report_table(board);
    if (r < 0)
        return fail("the result could not be printed");
    if (board_has_failed(board))
        return EXIT_FAILED;
    return signo ? EXIT_SIGNAL + signo : 0;
}

int main(int argc, char **argv)
{
    _cleanup_(board_freep) struct board *board = NULL;
    char error[TRACE_ERROR_MAX];
    struct options options;
    int r;

    r = options_parse(argc, argv, &options);
    if (r == OPTIONS_E_HELP)
        return 0;
    if (r)
        return EXIT_USAGE;
    r = load_all(&options, &board, error);
    if (r < 0)
        return fail(error);
    return options.write_folder ? write_traces(board) : replay(board);
}
