/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Reading the command line. What is not understood is named, on stderr, and ends the program before it has
 * touched anything.
 */

#include "options.h"

#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"
#include "base/parse.h"
#include "worker.h"

static const char usage[] =
    "usage: kvreplay [OPTION...] [TRACE...]\n"
    "\n"
    "Replays request traces through kvcachedd: an LLM engine per trace, with continuous batching over KV "
    "blocks\n"
    "that it borrows with libkvclient. Prints what each served, and the times to first token (TTFT).\n"
    "\n"
    "TRACE is FILE or gen:PROFILE, with @S behind it to shift it by S seconds. A file is CSV, one request a "
    "line:\n"
    "\"TIMESTAMP,ContextTokens,GeneratedTokens\" or \"milliseconds,input,output\". A generated trace has "
    "bursts, at\n"
    "another time for each engine; the profiles are code and chat. Default: gen:code gen:chat gen:code\n"
    "\n"
    "      --elastic         all engines draw on the same memory (default)\n"
    "      --static          an equal share each, as limits that are set through the control socket\n"
    "      --virtual         in one process and without a clock, the same every time (default)\n"
    "      --live            a process for each engine, in real time\n"
    "      --speed N         with --live: N times as fast as in real time\n"
    "      --split[=N]       each engine's worker, which maps and touches the memory, is a process of its "
    "own;\n"
    "                        or N of them are, and each holds every block, as the ranks of an engine do "
    "that is\n"
    "                        spread over N (here on one GPU, so a block takes N times the memory)\n"
    "      --reserves on|off  whether the library keeps pages ready (default: on with --live; the result of\n"
    "                        --virtual is the same)\n"
    "      --hold            each engine maps all that its limit allows at the start and keeps it, as "
    "engines\n"
    "                        do that share nothing; with --static\n"
    "\n"
    "      --requests N      only the first N of each trace\n"
    "      --slow F          stretch arrival times by this factor\n"
    "      --seed N          of the generator (default 1)\n"
    "      --write-traces DIR  write the traces to DIR/0.csv, DIR/1.csv, ... and stop\n"
    "\n";

static const char usage_models[] =
    "\n"
    "      --weights SIZE    memory on the GPU that each engine takes for weights\n"
    "      --token-bytes SIZE  KV cache of a token\n"
    "      --prefill-rate N  tokens of prompt that the GPU computes in a second\n"
    "      --layout WHAT     of KV blocks: blocks (all layers of a block together, default) or layers (a "
    "segment\n"
    "                        for each)\n"
    "      --page SIZE       size of a page in a segment (default: the smallest possible)\n"
    "\n"
    "      --socket PATH     of kvcachedd (default: where libkvclient finds it)\n"
    "      --name PREFIX     of the engines' names (default replay: replay-0, replay-1, ...)\n"
    "      --json            print the result as JSON\n"
    "  -h, --help            this text\n"
    "      --version\n"
    "\n"
    "An engine asks before each step how many blocks are available. To be refused no more than that is a "
    "failure.\n"
    "\n"
    "Exit status: 0 done, 1 failed, 2 wrong usage, 128 + N ended by signal N.\n";

static int complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

static int complain(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fputs("kvreplay: ", stderr);
    vfprintf(stderr, format, args);
    fputs("; kvreplay --help says more\n", stderr);
    va_end(args);
    return OPTIONS_E_USAGE;
}

static int print_help(void)
{
    const struct model *m;

    fputs(usage, stdout);
    for (size_t i = 0; (m = model_at(i)); i++)
        printf("      %-17s %s%s\n", i ? "" : "--model NAME", m->name, i ? "" : " (default)");
    fputs(usage_models, stdout);
    return OPTIONS_E_HELP;
}

static int print_version(void)
{
    puts("kvreplay " KVCACHED_VERSION);
    return OPTIONS_E_HELP;
}

enum {
    OPTION_ELASTIC = 256,
    OPTION_HOLD,
    OPTION_JSON,
    OPTION_LAYOUT,
    OPTION_LIVE,
    OPTION_MODEL,
    OPTION_NAME,
    OPTION_PAGE,
    OPTION_PREFILL_RATE,
    OPTION_REQUESTS,
    OPTION_RESERVES,
    OPTION_SEED,
    OPTION_SLOW,
    OPTION_SOCKET,
    OPTION_SPEED,
    OPTION_SPLIT,
    OPTION_STATIC,
    OPTION_TOKEN_BYTES,
    OPTION_VERSION,
    OPTION_VIRTUAL,
    OPTION_WEIGHTS,
    OPTION_WRITE_TRACES,
};

static const struct option table[] = {
    {"elastic", no_argument, NULL, OPTION_ELASTIC},
    {"help", no_argument, NULL, 'h'},
    {"hold", no_argument, NULL, OPTION_HOLD},
    {"json", no_argument, NULL, OPTION_JSON},
    {"layout", required_argument, NULL, OPTION_LAYOUT},
    {"live", no_argument, NULL, OPTION_LIVE},
    {"model", required_argument, NULL, OPTION_MODEL},
    {"name", required_argument, NULL, OPTION_NAME},
    {"page", required_argument, NULL, OPTION_PAGE},
    {"prefill-rate", required_argument, NULL, OPTION_PREFILL_RATE},
    {"requests", required_argument, NULL, OPTION_REQUESTS},
    {"reserves", required_argument, NULL, OPTION_RESERVES},
    {"seed", required_argument, NULL, OPTION_SEED},
    {"slow", required_argument, NULL, OPTION_SLOW},
    {"socket", required_argument, NULL, OPTION_SOCKET},
    {"speed", required_argument, NULL, OPTION_SPEED},
    {"split", optional_argument, NULL, OPTION_SPLIT},
    {"static", no_argument, NULL, OPTION_STATIC},
    {"token-bytes", required_argument, NULL, OPTION_TOKEN_BYTES},
    {"version", no_argument, NULL, OPTION_VERSION},
    {"virtual", no_argument, NULL, OPTION_VIRTUAL},
    {"weights", required_argument, NULL, OPTION_WEIGHTS},
    {"write-traces", required_argument, NULL, OPTION_WRITE_TRACES},
    {},
};

struct parsing {
    struct options options;
    bool has_reserves;
};

static int set_size(const char *name, const char *text, uint64_t *ret)
{
    return parse_size(text, ret) < 0 ? complain("--%s: \"%s\" is not a size", name, text) : 0;
}

static int set_count(const char *name, const char *text, uint64_t *ret)
{
    return parse_u64(text, ret) < 0 ? complain("--%s: \"%s\" is not a number", name, text) : 0;
}

static int set_factor(const char *name, const char *text, double *ret)
{
    double value;

    if (parse_decimal(text, &value) < 0 || value <= 0)
        return complain("--%s: \"%s\" is not a number above 0", name, text);
    *ret = value;
    return 0;
}

static int set_layout(struct options *o, const char *text)
{
    o->per_layer = strcmp(text, "layers") == 0;
    return o->per_layer || strcmp(text, "blocks") == 0 ? 0
                                                       : complain("--layout: \"%s\" is not a layout", text);
}

static int set_reserves(struct parsing *p, const char *text)
{
    if (parse_bool(text, &p->options.reserves) < 0)
        return complain("--reserves: \"%s\" is neither on nor off", text);
    p->has_reserves = true;
    return 0;
}

static int set_workers(struct options *o, const char *text)
{
    uint64_t n;

    if (parse_u64(text, &n) < 0 || n == 0 || n > WORKERS_MAX)
        return complain("--split: \"%s\" is not a number from 1 to %d", text, WORKERS_MAX);
    o->workers = (unsigned)n;
    return 0;
}

static int set_prefill_rate(struct options *o, const char *text)
{
    double rate = 1;
    int r = set_factor("prefill-rate", text, &rate);

    if (r == 0)
        o->model.prefill_s = 1 / rate;
    return r;
}

/* The model comes first, whatever the order of the arguments: other options change it. */
static int set_model(struct options *o, int argc, char **argv)
{
    const struct model *m = model_at(0);
    int c;

    opterr = 0;
    optind = 1;
    while ((c = getopt_long(argc, argv, "h", table, NULL)) != -1) {
        if (c != OPTION_MODEL)
            continue;
        m = model_find(optarg);
        if (!m)
            return complain("--model: \"%s\" is not a model that it knows", optarg);
    }
    o->model = *m;
    return 0;
}

static int set_option(struct parsing *p, int c, const char *name)
{
    struct options *o = &p->options;
    uint64_t requests = 0;
    int r = 0;

    switch (c) {
    case OPTION_ELASTIC:
    case OPTION_STATIC:
        o->elastic = c == OPTION_ELASTIC;
        return 0;
    case OPTION_LIVE:
    case OPTION_VIRTUAL:
        o->live = c == OPTION_LIVE;
        return 0;
    case OPTION_HOLD:
        o->hold = true;
        return 0;
    case OPTION_JSON:
        o->json = true;
        return 0;
    case OPTION_LAYOUT:
        return set_layout(o, optarg);
    case OPTION_MODEL:
        return 0;
    case OPTION_NAME:
        o->prefix = optarg;
        return 0;
    case OPTION_PAGE:
        return set_size(name, optarg, &o->page_bytes);
    case OPTION_PREFILL_RATE:
        return set_prefill_rate(o, optarg);
    case OPTION_REQUESTS:
        r = set_count(name, optarg, &requests);
        o->trace.limit = r ? 0 : requests;
        return r;
    case OPTION_SEED:
        return set_count(name, optarg, &o->seed);
    case OPTION_SLOW:
        return set_factor(name, optarg, &o->trace.slow);
    case OPTION_SOCKET:
        o->socket = optarg;
        return 0;
    case OPTION_RESERVES:
        return set_reserves(p, optarg);
    case OPTION_SPEED:
        return set_factor(name, optarg, &o->speed);
    case OPTION_SPLIT:
        return set_workers(o, optarg ? optarg : "1");
    case OPTION_TOKEN_BYTES:
        return set_size(name, optarg, &o->model.token_bytes);
    case OPTION_WEIGHTS:
        return set_size(name, optarg, &o->model.weights_bytes);
    case OPTION_WRITE_TRACES:
        o->write_folder = optarg;
        return 0;
    case OPTION_VERSION:
        return print_version();
    case 'h':
        return print_help();
    default:
        return OPTIONS_E_USAGE;
    }
}

static int set_traces(struct options *o, const char *const *specs, int n)
{
    static const char *const defaults[] = {"gen:code", "gen:chat", "gen:code"};

    if (n > ENGINES_MAX)
        return complain("%d traces, but %d engines at most", n, ENGINES_MAX);
    if (n == 0)
        specs = defaults;
    o->n_specs = n ? (size_t)n : ARRAY_SIZE(defaults);
    for (size_t i = 0; i < o->n_specs; i++)
        o->specs[i] = specs[i];
    return 0;
}

int options_parse(int argc, char **argv, struct options *ret)
{
    struct parsing p = {
        .options = {.elastic = true, .speed = 1, .trace = {.slow = 1}, .seed = 1, .prefix = "replay"}};
    struct options *o = &p.options;
    int c, index, r;

    r = set_model(o, argc, argv);
    if (r)
        return r;
    opterr = 1;
    optind = 1;
    while ((c = getopt_long(argc, argv, "h", table, &index)) != -1) {
        r = set_option(&p, c, c < 256 ? "" : table[index].name);
        if (r)
            return r;
    }
    r = set_traces(o, (const char *const *)argv + optind, argc - optind);
    if (r)
        return r;
    if (o->speed != 1 && !o->live)
        return complain("--speed is for --live");
    if (o->hold && o->elastic)
        return complain("--hold is for --static");
    if (!p.has_reserves)
        o->reserves = o->live;
    *ret = *o;
    return 0;
}
