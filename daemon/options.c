/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What the person who starts the daemon says. Forms are checked here, with a sentence for each thing that can
 * be wrong; whether a path or a GPU exists is found out by those who use it.
 */

#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/parse.h"
#include "http_address.h"

#define DEFAULT_CONFIG "/etc/kvcached/kvcachedd.conf"
#define CONFIG_FILE_MAX (1024 * 1024)

const char options_help[] =
    "usage: kvcachedd [options]\n"
    "\n"
    "Owns the memory of one GPU and lends it to LLM engines.\n"
    "\n"
    "  --gpu N|UUID           the GPU, by number in PCI order or by UUID (default 0)\n"
    "  --emulate SIZE[,SIZE…] no GPU: emulated devices of these sizes (or KVCACHED_EMULATE)\n"
    "  --socket PATH          where engines connect (or KVCACHED_SOCKET); kvctl uses PATH.ctl\n"
    "  --config FILE          configuration (default " DEFAULT_CONFIG ", if it exists)\n"
    "  --state-dir DIR        where limits are kept over a restart\n"
    "  --budget SIZE          what may be taken from the GPU, such as 40G\n"
    "  --utilization F        without --budget: this part of the GPU less what others use (default 0.95)\n"
    "  --metrics-listen A:P   where status page and metrics are, or off (default: port 9470 and the GPU's\n"
    "                         number, at 127.0.0.1)\n"
    "  --log-level L          error, warning, notice (default), info or debug\n"
    "  --check-config         only check options and configuration\n"
    "  --version, --help\n";

enum {
    OPTION_GPU = 256,
    OPTION_EMULATE,
    OPTION_SOCKET,
    OPTION_CONFIG,
    OPTION_STATE_DIR,
    OPTION_BUDGET,
    OPTION_UTILIZATION,
    OPTION_METRICS_LISTEN,
    OPTION_LOG_LEVEL,
    OPTION_CHECK_CONFIG,
    OPTION_VERSION,
    OPTION_HELP,
};

static const struct option long_options[] = {
    {"gpu", required_argument, NULL, OPTION_GPU},
    {"emulate", required_argument, NULL, OPTION_EMULATE},
    {"socket", required_argument, NULL, OPTION_SOCKET},
    {"config", required_argument, NULL, OPTION_CONFIG},
    {"state-dir", required_argument, NULL, OPTION_STATE_DIR},
    {"budget", required_argument, NULL, OPTION_BUDGET},
    {"utilization", required_argument, NULL, OPTION_UTILIZATION},
    {"metrics-listen", required_argument, NULL, OPTION_METRICS_LISTEN},
    {"log-level", required_argument, NULL, OPTION_LOG_LEVEL},
    {"check-config", no_argument, NULL, OPTION_CHECK_CONFIG},
    {"version", no_argument, NULL, OPTION_VERSION},
    {"help", no_argument, NULL, OPTION_HELP},
    {},
};

static int __attribute__((format(printf, 2, 3))) fail(char *error, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(error, OPTIONS_ERROR_MAX, format, args);
    va_end(args);
    return -EINVAL;
}

/* A variable that is set and not empty, or NULL. */
static const char *text_of(const char *variable)
{
    const char *text = getenv(variable);

    return text && *text ? text : NULL;
}

/* `origin`: the option or the variable that said it. */
static int parse_sizes(const char *origin, const char *text, char *error)
{
    char size[32];
    uint64_t bytes;

    for (;;) {
        size_t length = strcspn(text, ",");

        if (length >= sizeof(size))
            return fail(error, "%s: \"%.40s\" is not a size such as 80G", origin, text);
        memcpy(size, text, length);
        size[length] = '\0';
        if (parse_size(size, &bytes) < 0 || bytes == 0)
            return fail(error, "%s: \"%s\" is not a size such as 80G", origin, size);
        if (text[length] == '\0')
            return 0;
        text += length + 1;
    }
}

static int take_option(struct options *options, int option, char *value, char *error)
{
    switch (option) {
    case OPTION_GPU:
        options->gpu = value;
        return *value ? 0 : fail(error, "--gpu needs a number or a UUID");
    case OPTION_EMULATE:
        options->emulate = value;
        return parse_sizes("--emulate", value, error);
    case OPTION_SOCKET:
        options->socket = value;
        return *value ? 0 : fail(error, "--socket needs a path");
    case OPTION_CONFIG:
        options->config = value;
        return 0;
    case OPTION_STATE_DIR:
        options->state_dir = value;
        return *value ? 0 : fail(error, "--state-dir needs a path");
    case OPTION_BUDGET:
        if (parse_size(value, &options->budget_bytes) == 0 && options->budget_bytes > 0 &&
            options->budget_bytes != CONFIG_UNSET)
            return 0;
        return fail(error, "--budget: \"%s\" is not a size such as 40G", value);
    case OPTION_UTILIZATION:
        if (config_parse_fraction(value, &options->utilization_ppm) == 0)
            return 0;
        return fail(error, "--utilization: \"%s\" is not above 0 and at most 1", value);
    case OPTION_METRICS_LISTEN:
        options->metrics_listen = value;
        if (http_address_parse(value, &(struct http_address){0}) == 0)
            return 0;
        return fail(error, "--metrics-listen: \"%s\" is not " HTTP_ADDRESS_ACCEPTS, value);
    case OPTION_LOG_LEVEL:
        if (config_parse_level(value, &options->log_level) == 0)
            return 0;
        return fail(error, "--log-level: \"%s\" is none of error, warning, notice, info, debug", value);
    case OPTION_CHECK_CONFIG:
        options->check_config = true;
        return 0;
    case OPTION_VERSION:
        return OPTIONS_E_VERSION;
    case OPTION_HELP:
        return OPTIONS_E_HELP;
    default:
        return -EINVAL;
    }
}

int options_parse(int argc, char **argv, struct options *ret, char error[static OPTIONS_ERROR_MAX])
{
    struct options options = {
        .socket = text_of("KVCACHED_SOCKET"),
        .budget_bytes = CONFIG_UNSET,
        .utilization_ppm = CONFIG_UNSET,
        .log_level = CONFIG_UNSET,
    };
    int option, r;

    opterr = 0;
    while ((option = getopt_long(argc, argv, ":", long_options, NULL)) != -1) {
        if (option == ':')
            return fail(error, "%s needs a value; see kvcachedd --help", argv[optind - 1]);
        if (option == '?')
            return fail(error, "%s is not an option; see kvcachedd --help", argv[optind - 1]);
        r = take_option(&options, option, optarg, error);
        if (r != 0)
            return r;
    }
    if (optind < argc)
        return fail(error, "%s is one argument too many; see kvcachedd --help", argv[optind]);
    if (!options.emulate && (options.emulate = text_of("KVCACHED_EMULATE"))) {
        r = parse_sizes("KVCACHED_EMULATE", options.emulate, error);
        if (r < 0)
            return r;
    }
    *ret = options;
    return 0;
}

/* A file that exists must be read; the default one need not exist. */
static int read_config(const char *path, bool must_exist, char **ret_text, char *error)
{
    _cleanup_free_ char *text = NULL;
    FILE *file;
    size_t n;

    text = malloc(CONFIG_FILE_MAX);
    if (!text)
        return -ENOMEM;
    file = fopen(path, "re");
    if (!file && errno == ENOENT && !must_exist) {
        *text = '\0';
        *ret_text = steal_pointer(text);
        return 0;
    }
    if (!file) {
        int r = -errno;

        snprintf(error, CONFIG_ERROR_MAX, "Cannot read %s: %s", path, strerror(-r));
        return r;
    }
    n = fread(text, 1, CONFIG_FILE_MAX, file);
    if (ferror(file) || n == CONFIG_FILE_MAX || memchr(text, '\0', n)) {
        snprintf(error, CONFIG_ERROR_MAX, "%s is not a configuration file", path);
        fclose(file);
        return -EINVAL;
    }
    fclose(file);
    text[n] = '\0';
    *ret_text = steal_pointer(text);
    return 0;
}

static int overlay_string(char **field, const char *value)
{
    char *copy;

    if (!value)
        return 0;
    copy = strdup(value);
    if (!copy)
        return -ENOMEM;
    free(*field);
    *field = copy;
    return 0;
}

static void overlay_number(uint64_t *field, uint64_t value)
{
    if (value != CONFIG_UNSET)
        *field = value;
}

int options_settle(const struct options *options, unsigned gpu_index, const char *gpu_uuid,
                   struct config *config, char error[static CONFIG_ERROR_MAX])
{
    int r = config_for_gpu(config, gpu_index, gpu_uuid);

    if (r == 0)
        r = overlay_string(&config->socket, options->socket);
    if (r == 0)
        r = overlay_string(&config->state_dir, options->state_dir);
    if (r == 0)
        r = overlay_string(&config->metrics_listen, options->metrics_listen);
    if (r < 0)
        return snprintf(error, CONFIG_ERROR_MAX, "Out of memory"), r;
    overlay_number(&config->budget_bytes, options->budget_bytes);
    overlay_number(&config->utilization_ppm, options->utilization_ppm);
    overlay_number(&config->log_level, options->log_level);
    return 0;
}

const char *options_config_file(const struct options *options)
{
    return options->config ?: DEFAULT_CONFIG;
}

int options_load_config(const struct options *options, struct config **ret,
                        char error[static CONFIG_ERROR_MAX])
{
    _cleanup_(config_freep) struct config *config = NULL;
    _cleanup_free_ char *text = NULL;
    const char *path = options_config_file(options);
    int r;

    snprintf(error, CONFIG_ERROR_MAX, "Out of memory");
    r = read_config(path, options->config != NULL, &text, error);
    if (r == 0)
        r = config_parse(text, path, &config, error);
    if (r < 0)
        return r;
    *ret = steal_pointer(config);
    return 0;
}
